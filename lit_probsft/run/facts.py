"""The facts about a run that its record holds."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import lightning as L
import torch

from lit_probsft.model.source import describe
from lit_probsft.training.callbacks import datamodule_of
from lit_probsft.training.module import ProbSFTModule
from lit_probsft.training.run_length import steps_in_epoch


def describe_run(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any]:
    """What is known when the first step starts."""
    datamodule = datamodule_of(trainer)
    return {
        "versions": versions(),
        "machine": {
            "host": platform.node(),
            "platform": platform.platform(),
            "device": _device_name(trainer),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
        },
        "seeds": describe_seeds(module, datamodule),
        "objective": describe_objective(module),
        "model": {"name": model_name(module), **describe(module.model)},
        **({"reference": reference} if (reference := module.frozen_reference.description) else {}),
        "data": dict(getattr(datamodule, "report", {})),
        "commits": hub_commits(trainer, module),
        "data_fingerprint": getattr(datamodule, "fingerprint", None),
        "recipe": describe_recipe(trainer, module),
        "strategy": type(trainer.strategy).__name__,
    }


def versions() -> dict[str, str]:
    """The versions of Python, this package and the libraries that decide results."""
    names = ("lit_probsft", "lightning", "transformers", "datasets", "torchmetrics", "jsonargparse", "peft")
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}  # names the build, such as +cu132
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_seeds(module: ProbSFTModule, datamodule: Any) -> dict[str, int]:
    """The seed of everything that is random in the run: those set by themselves, and those that follow the run's."""
    found = {"order": getattr(datamodule, "seed", None)}
    if getattr(datamodule, "validation_fraction", 0):
        found["held_out"] = found["order"]
    found["model"] = getattr(module.source, "seed", None)
    found["adapters"] = None if module.lora is None else module.lora.seed
    found["dropout"] = module.seed
    return {name: seed for name, seed in found.items() if seed is not None}


def describe_objective(module: ProbSFTModule) -> dict[str, Any]:
    """Class, arguments and lean of the objective; names an overridden `token_loss`."""
    config = module.objective.as_config()
    try:
        config["lean"] = module.objective.lean()
    except (ValueError, ArithmeticError):  # not a function of p alone, or its mass is infinite
        config["lean"] = None
    if module.objective_state.capability is not None:
        config["mean_prob"] = module.objective_state.capability.mean_prob  # before training
        config["fitted"] = module.objective.fitted(module.objective_state.capability).as_config()
    if type(module).token_loss is not ProbSFTModule.token_loss:
        config["token_loss"] = f"{type(module).__module__}.{type(module).__qualname__}.token_loss"
    return config


def model_name(module: ProbSFTModule) -> str:
    """The name of the model's source, or the class of a model given as an object."""
    return type(module.model).__name__ if module.source is None else module.source.name


def hub_commits(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, str]:
    """The commits of everything that came from the hub, by the argument that names it."""
    model, reference = module.source and module.source.commit, module.frozen_reference.description.get("commit")
    return {
        **({} if model is None else {"model": model}),
        **({} if reference is None else {"model.reference": reference}),
        **getattr(datamodule_of(trainer), "commits", dict)(),
    }


def describe_recipe(trainer: L.Trainer, module: ProbSFTModule) -> dict[str, Any]:
    """The settings that decide the result apart from objective, model and data."""
    optimizer: Any = trainer.optimizers[0]
    optimizer = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed wraps it
    settings = {
        k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple) and not isinstance(v, bool)
    }
    datamodule = datamodule_of(trainer)
    return {
        "optimizer": type(optimizer).__name__,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "schedule": asdict(module.schedule),
        "optimizer_steps": module.total_steps,
        "sequences_per_step": getattr(datamodule, "batch_size", 0)
        * trainer.accumulate_grad_batches
        * trainer.world_size,
        "gradient_clip_val": trainer.gradient_clip_val,
        "normalize": module.normalize,
        **({"lora": asdict(module.lora)} if module.lora else {}),
        "max_length": getattr(datamodule, "max_length", None),
        "precision": str(trainer.precision),
    }


def _device_name(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def current_metrics(trainer: L.Trainer) -> dict[str, float]:
    """The metrics that the trainer has logged last."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def complete_epochs(trainer: L.Trainer) -> int:
    """The number of complete epochs; Lightning also counts an epoch that was stopped early."""
    in_epoch = None if getattr(datamodule_of(trainer), "streaming", False) else steps_in_epoch(trainer)
    return trainer.global_step // in_epoch if in_epoch else trainer.current_epoch


def forgetting(
    initial: Mapping[str, float], final: Mapping[str, float], watched: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """How training changed the metrics of the validation set and of the watched sets.

    Args:
        initial: metrics before the first step.
        final: metrics of the last validation.
        watched: names of the watched sets.

    Returns:
        By set (`validation` first) and metric (nll, mean_p, ece): `initial`, `final` and `difference`, if both values
        are known. A positive difference of nll is a loss, of mean_p a gain.
    """
    changes: dict[str, dict[str, dict[str, float]]] = {}
    for name, prefix in (("validation", "val/"), *((name, f"val/{name}/") for name in watched)):
        for metric in ("nll", "mean_p", "ece"):
            key = prefix + metric
            if key in initial and key in final:
                pair = {"initial": initial[key], "final": final[key], "difference": final[key] - initial[key]}
                changes.setdefault(name, {})[metric] = pair
    return changes
