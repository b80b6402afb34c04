"""Recognizes errors that mean too little memory, whatever library reports them."""

from __future__ import annotations

import re

from lit_probsft.errors import UserError, causes, first_line

_TEXTS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|bad_alloc|failed to allocate",
    re.IGNORECASE,
)
REMEDY = (
    "lower data.batch_size (and raise trainer.accumulate_grad_batches), data.max_length or model.logits_budget_mb, "
    "set model.model.gradient_checkpointing, or train adapters with model.lora"
)


def memory_error(error: BaseException) -> UserError | None:
    """The error to report if `error`, or one that caused it, says that there is too little memory; else None."""
    for cause in causes(error):
        named = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        if named or (isinstance(cause, RuntimeError | OSError) and _TEXTS.search(str(cause))):
            return UserError("memory", f"there is too little of it: {first_line(cause)}. To use less, {REMEDY}")
    return None
