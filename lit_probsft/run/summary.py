"""What a run has taken and come to: kept through interruptions, written into run.json, said at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_probsft.run.export import loader_of
from lit_probsft.run.folder import RunFolder
from lit_probsft.training.checkpoints import MONITOR
from lit_probsft.training.intervals import validation_set

CLOCK = "clock"
"""Where a checkpoint has the seconds so far: all that differs between two runs that did the same."""


class RunTimer(Callback):
    """Seconds of a run and its val/nll, over all the processes that have worked on it.

    A process that dies takes with it the seconds since its last checkpoint, as it takes the steps.
    """

    def __init__(self) -> None:
        self._of: str | None = None  # which validation set
        self._begun = time.monotonic()
        self._before = {"training": 0.0, "validation": 0.0, "total": 0.0}
        self._validation = 0.0
        self._training = self._within = 0.0
        self._validating: float | None = None
        self._training_since: float | None = None
        self.seen: dict[str, dict[str, float]] = {}
        """`first`, `best` and `last`: val/nll (nats) and the `step` after which it was."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it; keep what was found."""
        if self._validating is not None:
            taken = time.monotonic() - self._validating
            self._validation += taken
            self._within += taken if self._training_since is not None else 0.0
            self._validating = None
        metrics = getattr(pl_module, "initial_metrics", {}) if trainer.sanity_checking else trainer.callback_metrics
        if MONITOR not in metrics or (trainer.sanity_checking and trainer.ckpt_path):
            return
        found = {"step": trainer.global_step, "nll": float(metrics[MONITOR])}
        self.seen.setdefault("first", found)
        best = self.seen.get("best")
        self.seen["best"] = found if best is None or found["nll"] < best["nll"] else best
        self.seen["last"] = found

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on it trains, but for what is validated; val/nll of another set is forgotten."""
        self._training_since = time.monotonic()
        of, self._of = self._of, validation_set(trainer)
        if of != self._of and trainer.ckpt_path:
            self.seen = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training is over."""
        self._training, self._training_since = self._trained(), None

    def _trained(self) -> float:
        if self._training_since is None:
            return self._training
        return time.monotonic() - self._training_since - self._within

    @property
    def seconds(self) -> dict[str, float]:
        """`training` (with saving), `validation`, and `total`, from the start of the command on."""
        now = {"training": self._trained(), "validation": self._validation, "total": time.monotonic() - self._begun}
        return {name: self._before[name] + taken for name, taken in now.items()}

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        seconds = {name: round(value, 1) for name, value in self.seconds.items()}
        return {"seconds": seconds.pop("total"), "seconds_of": seconds, "validations": self.seen}

    def state_dict(self) -> dict[str, Any]:
        """What validation has found."""
        return {"seen": self.seen, "of": self._of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What validation has found."""
        self.seen, self._of = state_dict["seen"], state_dict["of"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The seconds so far."""
        checkpoint[CLOCK] = self.seconds

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The seconds of those before."""
        self._before = checkpoint.get(CLOCK, self._before)


def summary(record: Mapping[str, Any], run: RunFolder, total: int) -> list[str]:
    """The last lines of a run: what it has come to, what it took, where all is, what to try next.

    Args:
        record: the content of run.json.
        run: its folder.
        total: optimizer steps that it would have had.
    """
    lines = ["", *_came_to(record)]
    counts, seconds, of = record["counts"], record["seconds"], record["seconds_of"]
    steps = f"{counts['optimizer_steps']}" + (f" of {total}" if counts["optimizer_steps"] < total else "")
    lines.append(
        f"steps:   {steps} in {duration(seconds)} (training {duration(of['training'])}, validation "
        f"{duration(of['validation'])})"
    )
    if counts["tokens"]:
        rate = f"; {counts['tokens'] / of['training']:,.0f} a second of training" if of["training"] else ""
        lines.append(f"tokens:  {counts['tokens']:,}, {counts['supervised_tokens']:,} of them supervised{rate}")
    if counts["skipped_steps"]:
        lines.append(f"skipped: {counts['skipped_steps']} steps, whose loss or gradient was not finite")
    if record.get("stopped_early"):
        lines.append(f"stopped: before its last step: {record['stopped_early']}")
    config = run.config
    if run.hf.exists():
        of_step = f" of step {record['exported_step']}" if record.get("exported_step") is not None else ""
        lines.append(f"model:   {run.hf}{of_step}  ({loader_of(run.hf)} loads it as it is)")
    else:
        lines.append(f"model:   not exported; python -m lit_probsft export {run.checkpoints}/last.ckpt OUT does it")
    return [
        *lines,
        f"record:  {run.record}, {run.metrics}, {run.checkpoints}/",
        "next:    the same run with another objective, under another name:",
        f"         python -m lit_probsft fit --config {config} --name {run.path.name}-power "
        "--model.objective Power --model.objective.alpha 0.5",
        "         a page about this one:",
        f"         python -m lit_probsft report {run.path}",
        "         answers of the trained model:",
        f"         python -m lit_probsft predict --config {config}",
    ]


def _came_to(record: Mapping[str, Any]) -> list[str]:
    lines = []
    seen, mean_p = record["validations"], record["metrics"].get("val/mean_p")
    if "first" in seen:
        first, best, last = seen["first"], seen["best"], seen["last"]
        if last["step"] == first["step"]:
            return [f"val/nll {first['nll']:.3f} nats after step {first['step']}, not measured since"]
        text = f"val/nll {first['nll']:.3f} -> {last['nll']:.3f} nats"
        text += f", mean p {mean_p:.3f}" if mean_p is not None else ""
        text += f"; the best was {best['nll']:.3f} after step {best['step']}" if best["step"] != last["step"] else ""
        lines.append(text)
    for name, change in (record.get("forgetting") or {}).items():
        if name != "validation":
            lines.append(f"val/{name}/nll {change['nll']['initial']:.3f} -> {change['nll']['final']:.3f} nats")
    return lines


def duration(seconds: float) -> str:
    """As people say it: 5.2 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
