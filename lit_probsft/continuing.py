"""A run that goes on: what makes it the same run, what its checkpoints hold beside weights and optimizer, and what its
configuration changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info

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
            "checkpoint: expected to be written between two optimizer steps, not while micro-batches accumulate"
        )
    return {
        "base": None if module.base_of_adapters is None else module.base_of_adapters["fingerprint"],
        "skipped_steps": module.skipped_steps,
        "fitted": module.fitted.state_dict(),
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
            f"{flag}: expected the base that the checkpoint's adapters were trained with (weights {base}), got "
            f"{'no model.lora' if known is None else known}"
        )
    if base is None and not module.strict_loading:
        raise UserError(f"{flag}: expected a checkpoint of adapters beside model.lora, it holds a whole model")
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


KEPT = (
    "seed_everything",
    "model.model",
    "model.model.model_name_or_path",
    "model.model.seed",
    "model.probe_rows",
    "model.lora.start",
)
"""Flags whose work was done before the first step: the checkpoint has what came of it."""
_NOT_ASKED = ("name", "runs_dir")


def changed_flags(before: str, now: str) -> dict[str, tuple[Any, Any]]:
    """What two whole configurations differ in, by flag.

    An option that only one of them has is told where the class that has it differs, and not where a release of the
    package has brought or taken it.

    Args:
        before: YAML.
        now: YAML.

    Returns:
        Old and new value by flag, in the order of `now`; classes are their import paths.
    """
    old, new = (_flags(yaml.safe_load(text)) for text in (before, now))
    changed: dict[str, tuple[Any, Any]] = {}
    for flag in [*new, *(flag for flag in old if flag not in new)]:
        owner = flag.rpartition(".")[0]
        both = flag in old and flag in new
        if flag not in _NOT_ASKED and old.get(flag) != new.get(flag) and (both or owner in changed):
            changed[flag] = old.get(flag), new.get(flag)
    return changed


def told_changes(changed: dict[str, tuple[Any, Any]], config: Any) -> list[str]:
    """The same in words.

    Args:
        changed: of `changed_flags`.
        config: the file that had the old values.
    """
    lines = []
    for taken, words in ((True, "and taken from now on"), (False, "without effect: the checkpoint has what they did")):
        flags = {flag: values for flag, values in changed.items() if (flag not in KEPT) == taken}
        if flags:
            lines.append(f"--resume: other than in {config}, {words}:")
            lines += [f"  {flag}: {' -> '.join(_short(*values))}" for flag, values in flags.items()]
    return lines


def _flags(node: Any, name: str = "") -> dict[str, Any]:
    """Leaves by flag; a class stands under the name of its option."""
    if not isinstance(node, dict):
        return {name: node}
    found: dict[str, Any] = {}
    if name and not node.keys() & {"class_path"}:
        found[name] = "a mapping"
    for key, value in node.items():
        if key == "class_path":
            found[name] = _Class(value)
        elif key == "init_args":
            found.update({k: v for k, v in _flags(value, name).items() if k != name})
        else:
            found.update(_flags(value, f"{name}.{key}" if name else str(key)))
    return found


class _Class(str):
    """The import path of one."""

    __slots__ = ()


def _short(*values: Any) -> list[str]:
    """In words; classes by their names alone, where that tells them apart."""
    names = [value.rpartition(".")[2] if isinstance(value, _Class) else value for value in values]
    chosen = values if len(set(map(str, names))) < len(names) else names
    return ["none" if v is None else str(v) if isinstance(v, str) else json.dumps(v) for v in chosen]
