"""What others print that our users cannot act on is left out; what they can act on is not."""

from __future__ import annotations

import logging
import re
import warnings

_WARNINGS = (
    "does not have many workers",  # batches are small arrays
    "LightningCLI's args parameter is intended",  # main() gives it what the shell gave
    "LeafSpec.*is deprecated",  # between Lightning and torch
    "Total length of `list` across ranks is zero",  # no validation rows, which is allowed
    "The number of training batches .* is smaller than the logging interval",  # the last step is logged in any case
    "Checkpoint directory .* exists and is not empty",  # of the run that is continued
    "You defined a `validation_step` but have no `val_dataloader`",
    r"It is recommended to use `self.log\(.*sync_dist=True",  # the metrics have added up the ranks themselves
    "Since DeepSpeed handles gradient clipping internally",  # and the module leaves it to it
    "When saving the DeepSpeed Stage 3 checkpoint",
    r"`torch.distributed.*` is deprecated",  # between torch and torch, or DeepSpeed
    "FSDP2-wrapped module .* returned a view tensor",  # nothing is changed in place
    "`is_gradient_checkpointing` is deprecated",  # between transformers and transformers
)
_LINES = (
    "^💡|^TPU available",  # advertisements
    "^GPU available: False, used: False",  # there is nothing else to be had
    "Seed set to",  # config.yaml has it
    r"^`Trainer\.fit` stopped: `max_(epochs|steps)=",  # the run's last lines say it
    "^Restored all states from the checkpoint",  # that it was about to was said before
    r"^`Trainer\(.*\)` was configured so",  # of what a command sets for itself
    "Setting accelerator to CPU",  # DeepSpeed's, imported or not wanted
    "^Failed to load CPU .* from kernels-community",  # of 4-bit weights, whoever uses them
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.setup",
    "DeepSpeed",
    "bitsandbytes.backends.cpu.ops",
)


class _Useful(logging.Filter):
    pattern = re.compile("|".join(_LINES))

    def filter(self, record: logging.LogRecord) -> bool:
        return not self.pattern.search(record.getMessage())


_USEFUL = _Useful()


def quieten() -> None:
    """Leave it out from now on; to do so twice changes nothing."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()  # of reading and writing weights: ours is about training
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_USEFUL)
