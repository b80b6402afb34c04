"""A run that goes on: what makes it the same run, what its checkpoints hold beside weights and optimizer, and what its
configuration changes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from lit_probsft.errors import UserError
from lit_probsft.intervals import steps_in_epoch
from lit_probsft.parallel.resuming import count_in

if TYPE_CHECKING:
    from lit_probsft.module import ProbSFTModule


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
        "model.lora": json.dumps(module.lora and asdict(module.lora)),
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
            "checkpoint: expected to be written between two optimizer steps, not while micro-batches accumulate"
        )
    return {
        "skipped_steps": module.skipped_steps,
        "fitted": module.fitted.state_dict(),
        "initial_metrics": module.initial_metrics,
        "seed": module.seed,
        "accumulate": module.trainer.accumulate_grad_batches,
        "run": identity(module),
    }


def restore(module: ProbSFTModule, checkpoint: dict[str, Any]) -> None:
    """They go on where they were. Windows may be cut into other micro-batches, for another number of processes: what is
    in them stays, and Lightning's counters in `checkpoint` are rewritten.

    Raises:
        UserError: the run would be another one, by what differs.
    """
    progress = checkpoint.get("progress", {})
    if module.trainer.training or module.trainer.state.fn == "fit":
        before, now = progress.get("run", {}), identity(module)
        for name in before:
            if before[name] != now.get(name):
                raise UserError(
                    f"--resume: expected {name} as in the checkpoint, {before[name]}, got {now.get(name)}; "
                    "a run with other settings is a new run, from the old one's hf/ folder"
                )
        count_in(checkpoint, progress.get("accumulate"), module.trainer.accumulate_grad_batches)
    module.seed = progress.get("seed", module.seed)
    module.skipped_steps = progress.get("skipped_steps", 0)
    if "fitted" in progress:
        module.fitted.load_state_dict(progress["fitted"])
    module.initial_metrics = progress.get("initial_metrics", {})


def optimizer_anew(trainer: L.Trainer, chosen: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Let the arguments of this run's optimizer win over those in the checkpoint; returns what that changes.

    The learning rate is the schedule's at this step, to the bit what it would be without a checkpoint.

    Args:
        trainer: with schedulers and optimizers as the checkpoint has left them.
        chosen: the options of each parameter group, as this run's optimizer was built.
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
    return list(changed.items())
