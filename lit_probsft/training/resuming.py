"""A run that goes on: what makes it the same run, what its checkpoints hold beside weights and optimizer, and what its
configuration changes."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lit_probsft.errors import UserError
from lit_probsft.training.intervals import steps_in_epoch

if TYPE_CHECKING:
    from lit_probsft.training.module import ProbSFTModule


def identity(module: ProbSFTModule) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    datamodule = module.datamodule
    if not hasattr(datamodule, "plan"):
        return {}
    plan = datamodule.plan.describe()
    for factor in ("batch_size", "accumulate", "world_size"):  # of window_size, which alone must stay
        del plan[factor]
    reference = module.describe_reference().get("weights")
    return {
        "model.objective": json.dumps(module.objective.as_config()),
        "model.normalize": module.normalize,
        "model.lora": json.dumps(module.lora and module.lora.identity),
        **({"the reference's weights": reference} if reference else {}),
        "the data's fingerprint": datamodule.fingerprint,
        **{f"the plan's {name}": value for name, value in plan.items()},
        **({} if plan.get("stream") else {"the number of steps in an epoch": steps_in_epoch(module.trainer)}),
    }


def progress_of(module: ProbSFTModule) -> dict[str, Any]:
    """Counters, first metrics, and what random numbers are derived from: plain data for a checkpoint.

    Raises:
        UserError: in the midst of an optimizer step, whose gradients so far would be lost.
    """
    if module.trainer.state.fn == "fit" and module.trainer.fit_loop._should_accumulate():
        raise UserError(
            "checkpoint", "expected to be written between two optimizer steps, not while micro-batches accumulate"
        )
    return {
        "base": None if module.base_of_adapters is None else module.base_of_adapters["fingerprint"],
        "skipped_steps": module.skipped_steps,
        "fitted": module.objective_state.state_dict(),
        "initial_metrics": module.initial_metrics,
        "seed": module.seed,
        "accumulate": module.trainer.accumulate_grad_batches,
        "run": identity(module),
    }


def without_base(model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """A module's state dict without the weights of `model` that are frozen."""
    named = list(model.named_parameters(remove_duplicate=False))
    frozen = {f"model.{name}" for name, parameter in named if not parameter.requires_grad}
    trained = {f"model.{name}" for name, _ in named} - frozen
    return {name: value for name, value in weights.items() if not name.startswith("model.") or name in trained}


def restore(module: ProbSFTModule, checkpoint: dict[str, Any]) -> None:
    """They go on where they were. Windows may be cut into other micro-batches, for another number of processes: what is
    in them stays, and Lightning's counters in `checkpoint` are rewritten.

    Raises:
        UserError: the run would be another one, by what differs.
    """
    progress = checkpoint.get("progress", {})
    flag = "--resume" if module.trainer.state.fn == "fit" else "--ckpt_path"
    known = module.base_of_adapters and module.base_of_adapters["fingerprint"]
    if (base := progress.get("base")) is not None and base != known:
        raise UserError(
            flag,
            f"expected the base that the checkpoint's adapters were trained with (weights {base}), got "
            f"{'no model.lora' if known is None else known}",
        )
    if base is None and not module.strict_loading:
        raise UserError(flag, "expected a checkpoint of adapters beside model.lora, it holds a whole model")
    if module.trainer.training or module.trainer.state.fn == "fit":
        before, now = progress.get("run", {}), identity(module)
        for name in before:
            if before[name] != now.get(name):
                raise UserError(
                    "--resume",
                    f"expected {name} as in the checkpoint, {before[name]}, got {now.get(name)}; "
                    "a run with other settings is a new run, from the old one's hf/ folder",
                )
        count_in(checkpoint, progress.get("accumulate"), module.trainer.accumulate_grad_batches)
    module.seed = progress.get("seed", module.seed)
    module.skipped_steps = progress.get("skipped_steps", 0)
    if "fitted" in progress:
        module.objective_state.load_state_dict(progress["fitted"])
    module.initial_metrics = progress.get("initial_metrics", {})


def optimizer_anew(trainer: L.Trainer, chosen: list[dict[str, Any]], *, quietly: bool = False) -> None:
    """Let the arguments of this run's optimizer win over those in the checkpoint, and say what that changes.

    The learning rate is the schedule's at this step, to the bit what it would be without a checkpoint.

    Args:
        trainer: with schedulers and optimizers as the checkpoint has left them.
        chosen: the options of each parameter group, as this run's optimizer was built.
        quietly: the user has been told.
    """
    changed: dict[str, Any] = {}
    for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) or not chosen:
            continue  # of a subclass with an optimizer of its own
        for index, (group, options) in enumerate(zip(scheduler.optimizer.param_groups, chosen, strict=True)):
            before = {**group, "lr": scheduler.base_lrs[index]}
            changed.update({f"{k} {before[k]}": v for k, v in options.items() if k in before and before[k] != v})
            scheduler.base_lrs[index] = options["lr"]
            lr = options["lr"] * scheduler.lr_lambdas[index](scheduler.last_epoch)
            group.update({**options, "initial_lr": options["lr"], "lr": lr})
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    for option, value in changed.items():
        if not quietly:
            rank_zero_info(f"--resume: the optimizer's {option} is now {value}")


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed from a few integers, such as (seed, step, micro-batch, rank): equal for equal ones, unrelated for
    others."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def count_in(checkpoint: dict[str, Any], before: int | None, now: int) -> None:
    """Rewrite Lightning's counters of micro-batches, in place, for windows of `now` micro-batches instead of `before`.

    A checkpoint is written between two windows; at that moment the last micro-batch may not count as completed yet.
    """
    if before is None or before == now:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        pending = counts["processed"] - counts["completed"]
        for name in ("ready", "started", "processed"):
            counts[name] = counts[name] // before * now
        counts["completed"] = counts["processed"] - pending
