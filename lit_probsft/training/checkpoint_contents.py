"""What a checkpoint holds besides weights and optimizer, and which run may resume from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lit_probsft.errors import UserError
from lit_probsft.training.lightning_internals import between_steps
from lit_probsft.training.run_length import steps_in_epoch

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def save(module: ProbSFTModule, checkpoint: dict[str, Any]) -> None:
    """Add counters, first metrics and seed to a checkpoint; with adapters, remove the weights of their base.

    Raises:
        UserError: micro-batches accumulate, whose gradients would be lost.
    """
    if module.trainer.state.fn == "fit" and not between_steps(module.trainer):
        raise UserError("checkpoint", "expected a save between two optimizer steps, got one while gradients accumulate")
    if module.base_of_adapters is not None and "state_dict" in checkpoint:
        checkpoint["state_dict"] = _trained_weights(module.model, checkpoint["state_dict"])
    checkpoint["progress"] = {
        "base": None if module.base_of_adapters is None else module.base_of_adapters["fingerprint"],
        "skipped_steps": module.skipped_steps,
        "fitted": module.objective_state.state_dict(),
        "initial_metrics": module.initial_metrics,
        "seed": module.seed,
        "accumulate": module.trainer.accumulate_grad_batches,
        "run": run_identity(module),
    }


def load(module: ProbSFTModule, checkpoint: dict[str, Any]) -> None:
    """Restore what `save` added. The number of processes and of micro-batches per step may have changed.

    Raises:
        UserError: the run is another one, naming what differs.
    """
    progress = checkpoint.get("progress", {})
    flag = "--resume" if module.trainer.state.fn == "fit" else "--ckpt_path"
    base = progress.get("base")
    known = module.base_of_adapters and module.base_of_adapters["fingerprint"]
    if base is not None and base != known:
        raise UserError(
            flag,
            f"expected the base that the checkpoint's adapters were trained with (weights {base}), got "
            f"{'no model.lora' if known is None else known}",
        )
    if base is None and not module.strict_loading:
        raise UserError(flag, "expected a checkpoint of adapters with model.lora, got one of a whole model")
    if module.trainer.training or module.trainer.state.fn == "fit":
        _check_identity(progress.get("run", {}), run_identity(module))
        _recount(checkpoint, progress.get("accumulate"), module.trainer.accumulate_grad_batches)
        module.seed = progress.get("seed", module.seed)
    module.gradients.skipped_steps = progress.get("skipped_steps", 0)
    if "fitted" in progress:
        module.objective_state.load_state_dict(progress["fitted"])
    module.initial_metrics = progress.get("initial_metrics", {})


_DATA = "the data's fingerprint"
_WHY_DATA_DIFFER = (
    "the rows or the options of data have changed, or the version that wrote the checkpoint made other tokens of them; "
)


def run_identity(module: ProbSFTModule) -> dict[str, Any]:
    """What must not change when a run resumes, under the names that an error message uses."""
    datamodule = module.datamodule
    if not hasattr(datamodule, "plan"):
        return {}
    plan = datamodule.plan.describe()
    for factor in ("batch_size", "accumulate", "world_size"):  # only their product, window_size, must stay
        del plan[factor]
    reference = module.frozen_reference.description.get("weights")
    return {
        "the plan's seed": plan.pop("seed"),  # the first, because it decides the held-out rows and their fingerprint
        "model.objective": json.dumps(module.objective.as_config()),
        "model.normalize": module.normalize,
        "model.lora": json.dumps(module.lora and module.lora.identity),
        **({"the reference's weights": reference} if reference else {}),
        _DATA: datamodule.fingerprint,
        **{f"the plan's {name}": value for name, value in plan.items()},
        **({} if plan.get("stream") else {"the number of steps in an epoch": steps_in_epoch(module.trainer)}),
    }


def _check_identity(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in before:
        if before[name] != now.get(name):
            why = _WHY_DATA_DIFFER if name == _DATA else ""
            raise UserError(
                "--resume",
                f"expected {name} as in the checkpoint, {before[name]}, got {now.get(name)}; {why}"
                "a run with other settings is a new run, from the old one's hf/ folder",
            )


def _trained_weights(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """A module's state dict without the frozen weights of `model`."""
    named = list(model.named_parameters(remove_duplicate=False))
    frozen = {f"model.{name}" for name, parameter in named if not parameter.requires_grad}
    trained = {f"model.{name}" for name, _ in named} - frozen
    return {name: value for name, value in weights.items() if not name.startswith("model.") or name in trained}


def _recount(checkpoint: dict[str, Any], before: int | None, now: int) -> None:
    """Rewrite Lightning's counters of micro-batches, in place, for steps of `now` instead of `before` micro-batches.

    A checkpoint is saved between two steps. Its last micro-batch may not count as completed yet.
    """
    if before is None or before == now:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        pending = counts["processed"] - counts["completed"]
        for name in ("ready", "started", "processed"):
            counts[name] = counts[name] // before * now
        counts["completed"] = counts["processed"] - pending
