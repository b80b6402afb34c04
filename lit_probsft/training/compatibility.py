"""Options that each are right and do not stand together, refused by name once trainer, model and data are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError
from lit_probsft.objectives.base import REFERENCE
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def check_combination(module: ProbSFTModule, stage: str) -> None:
    """Refuse what would silently train something else.

    Raises:
        UserError: it would.
    """
    trainer, objective = module.trainer, module.objective
    if stage == "fit" and module.objective_state.missing and not hasattr(module.datamodule, "inspect"):
        needs = ", ".join(sorted(module.objective_state.wanted))
        raise UserError(
            "model.objective",
            f"{type(objective).__name__} needs {needs}, which is measured over the rows of "
            "an InstructionDataModule; give it one, or name a `source`",
        )
    if str(trainer.precision).startswith("16"):
        raise UserError("trainer.precision", f"expected 32-true, bf16-mixed or bf16-true, got {trainer.precision}")
    if (needed := objective.needs & REFERENCE) and getattr(trainer.strategy, "zero_stage_3", False):
        raise UserError(
            "model.objective",
            f"{type(objective).__name__} needs {', '.join(sorted(needed))} of a second "
            "model, which ZeRO-3 would cut without ever putting it together again; use fsdp2, or stage 1 or 2",
        )
    if isinstance(trainer.strategy, DeepSpeed) and module.normalize == "kept":
        raise UserError(
            "model.normalize",
            "kept is not possible with DeepSpeed, whose engine keeps the gradients to itself; use tokens, or fsdp2",
        )
    seconds = getattr(trainer, "_val_check_time_interval", None)
    if stage == "fit" and seconds is not None and trainer.accumulate_grad_batches > 1:
        raise UserError(
            "trainer.val_check_interval",
            "expected a number of micro-batches or a share of an epoch where "
            f"accumulate_grad_batches is above 1, got a time of {seconds:g} s",
        )


def check_adapters(module: ProbSFTModule) -> None:
    """Refuse adapters, and matrices in few bits, that the strategy cannot handle.

    Raises:
        UserError: it cannot.
    """
    strategy: Any = module.trainer.strategy
    cut = "FSDP2" if isinstance(strategy, FSDP2) else ""
    cut = "ZeRO-3" if getattr(strategy, "zero_stage_3", False) else cut
    source = module.source if module.lora is not None else module.reference.source_for(None)
    if cut and getattr(source, "quantization", "none") != "none":
        raise UserError(
            "model.model.quantization",
            f"expected none with {cut}, which cannot cut quantized matrices; use ddp, "
            "which holds them whole on each device",
        )
    if module.lora is not None and module.lora.dora and cut == "ZeRO-3":
        raise UserError(
            "model.lora.dora",
            "not possible with ZeRO-3, which empties the matrices whose rows it measures; use fsdp2, or stage 1 or 2",
        )


def check_fits(model: Any, largest: int, longest: int) -> None:
    """Refuse ids outside a model's vocabulary and documents longer than its positions.

    Args:
        model: a `PreTrainedModel`.
        largest: id in the data.
        longest: document, in tokens.

    Raises:
        UserError: they do not fit.
    """
    vocabulary = model.get_output_embeddings().out_features
    if largest >= vocabulary:
        raise UserError(
            "data.tokenizer",
            f"expected ids below the model's vocabulary of {vocabulary}, got {largest}: "
            "does the tokenizer belong to this model?",
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise UserError(
            "data.max_length",
            f"expected documents within the model's {positions} positions, the longest has {longest} tokens",
        )
