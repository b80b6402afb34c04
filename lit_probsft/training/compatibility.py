"""Options that are valid each by itself but not together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError
from lit_probsft.model.adapter_base import check_adapter_export
from lit_probsft.model.lora import LoRA
from lit_probsft.objectives import Objective
from lit_probsft.objectives.base import NEEDS, REFERENCE
from lit_probsft.parallel.strategies import FSDP2, DeepSpeed
from lit_probsft.training.lightning_internals import seconds_between_validations

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def check_arguments(
    model: Any, objective: Objective, normalize: str, lora: LoRA | None, logits_budget_mb: float | None, probe_rows: int
) -> None:
    """Check the arguments of `ProbSFTModule`.

    Raises:
        UserError: naming the argument.
    """
    if probe_rows < 1:
        raise UserError("model.probe_rows", f"expected at least 1, got {probe_rows}")
    if logits_budget_mb is not None and not logits_budget_mb > 0:
        raise UserError("model.logits_budget_mb", f"expected more than 0 MiB, got {logits_budget_mb}")
    if unknown := sorted(objective.needs - NEEDS):
        expected = f"expected names among {', '.join(sorted(NEEDS))}"
        raise UserError("model.objective.needs", f"{expected}, got {', '.join(unknown)}")
    quantization = getattr(model, "quantization", "none")
    if lora is None and quantization != "none":
        raise UserError(
            "model.model.quantization",
            f"expected model.lora with {quantization}, because quantized matrices cannot be trained, got none",
        )
    if lora is not None:
        place = model if isinstance(model, str) else getattr(model, "model_name_or_path", None)
        check_adapter_export(lora, type(model).__name__, "model.lora.export", place, getattr(model, "revision", None))
        if lora.dora and quantization == "int8":
            raise UserError("model.lora.dora", "expected nf4 or no quantization with it, got int8")
    if normalize not in ("tokens", "sequence", "kept", "micro_batch"):
        raise UserError("model.normalize", f"expected tokens, sequence, kept or micro_batch, got {normalize!r}")


def check_combination(module: ProbSFTModule, stage: str) -> None:
    """Refuse options of module, trainer and data that would silently train something else.

    Raises:
        UserError: naming the options.
    """
    trainer, objective = module.trainer, module.objective
    if stage == "fit" and module.objective_state.missing and not hasattr(module.datamodule, "inspect"):
        needs = ", ".join(sorted(module.objective_state.wanted))
        raise UserError(
            "model.objective",
            f"{type(objective).__name__} needs {needs}, which is measured on the rows of an InstructionDataModule; "
            "use one, or name a `source`",
        )
    if str(trainer.precision).startswith("16"):
        raise UserError("trainer.precision", f"expected 32-true, bf16-mixed or bf16-true, got {trainer.precision}")
    if stage == "fit" and module.reference.model is not None and not objective.needs & REFERENCE:
        raise UserError(
            "model.reference.model",
            f"expected an objective that reads a reference, such as Anchored or PSFT, got {type(objective).__name__}",
        )
    if (needed := objective.needs & REFERENCE) and getattr(trainer.strategy, "zero_stage_3", False):
        raise UserError(
            "model.objective",
            f"{type(objective).__name__} needs {', '.join(sorted(needed))} of a second model, which ZeRO-3 would "
            "shard and never gather; use fsdp2, or stage 1 or 2",
        )
    if isinstance(trainer.strategy, DeepSpeed) and module.normalize == "kept":
        raise UserError(
            "model.normalize",
            "kept is not possible with DeepSpeed, whose engine does not expose the gradients; use tokens, or fsdp2",
        )
    seconds = seconds_between_validations(trainer)
    if stage == "fit" and seconds is not None and trainer.accumulate_grad_batches > 1:
        raise UserError(
            "trainer.val_check_interval",
            "expected a number of micro-batches or a share of an epoch with accumulate_grad_batches above 1, "
            f"got a time of {seconds:g} s",
        )


def check_adapters(module: ProbSFTModule) -> None:
    """Refuse adapters and quantized matrices that the strategy does not support.

    Raises:
        UserError: naming both.
    """
    strategy: Any = module.trainer.strategy
    sharded = "FSDP2" if isinstance(strategy, FSDP2) else ""
    sharded = "ZeRO-3" if getattr(strategy, "zero_stage_3", False) else sharded
    source = module.source if module.lora is not None else module.reference.source_for(None)
    if sharded and getattr(source, "quantization", "none") != "none":
        raise UserError(
            "model.model.quantization",
            f"expected none with {sharded}, which cannot shard quantized matrices; use ddp, where each device holds "
            "all of them",
        )
    if module.lora is not None and module.lora.dora and sharded == "ZeRO-3":
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
        UserError: naming both numbers.
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
            f"expected documents within the model's {positions} positions, got one of {longest} tokens",
        )
