"""The last lines that a run prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_probsft.run.export import loader_of
from lit_probsft.run.folder import RunFolder


def summary(record: Mapping[str, Any], run: RunFolder, total: int) -> list[str]:
    """The last lines of a run: its result, its cost, where its files are, and what to try next.

    Args:
        record: the content of run.json.
        run: its folder.
        total: the optimizer steps that were planned.
    """
    lines = ["", *_result(record)]
    counts, seconds, of = record["counts"], record["seconds"], record["seconds_of"]
    steps = f"{counts['optimizer_steps']}" + (f" of {total}" if counts["optimizer_steps"] < total else "")
    evaluation = f", evaluation {duration(of['evaluation'])}" if of.get("evaluation") else ""
    lines.append(
        f"steps:   {steps} in {duration(seconds)} (training {duration(of['training'])}, validation "
        f"{duration(of['validation'])}{evaluation})"
    )
    if counts["tokens"]:
        rate = f"; {counts['tokens'] / of['training']:,.0f} tokens per second" if of["training"] else ""
        lines.append(f"tokens:  {counts['tokens']:,}, {counts['supervised_tokens']:,} of them supervised{rate}")
    if counts["skipped_steps"]:
        lines.append(f"skipped: {counts['skipped_steps']} steps with a loss or gradient that was not finite")
    if record.get("stopped_early"):
        lines.append(f"stopped: before its last step: {record['stopped_early']}")
    config = run.config
    if run.hf.exists():
        of_step = f" of step {record['exported_step']}" if record.get("exported_step") is not None else ""
        lines.append(f"model:   {run.hf}{of_step}  (load it with {loader_of(run.hf)})")
    else:
        lines.append(f"model:   not exported; export it: python -m lit_probsft export {run.checkpoints}/last.ckpt OUT")
    metrics = f"{run.metrics}, " * run.metrics.exists()  # a run shorter than the logging interval has none
    return [
        *lines,
        f"record:  {run.record}, {metrics}{run.checkpoints}/",
        "next:    try another objective under another name:",
        f"         python -m lit_probsft fit --config {config} --name {run.path.name}-power "
        "--model.objective Power --model.objective.alpha 0.5",
        "         make a report of this run:",
        f"         python -m lit_probsft report {run.path}",
        "         write answers of the trained model to a file:",
        f"         python -m lit_probsft predict --config {config}",
    ]


def _result(record: Mapping[str, Any]) -> list[str]:
    lines = _accuracies(record)
    seen, mean_p = record["validations"], record["metrics"].get("val/mean_p")
    if "first" in seen:
        first, best, last = seen["first"], seen["best"], seen["last"]
        if last["step"] == first["step"]:
            return [f"val/nll {first['nll']:.3f} nats after step {first['step']}, not measured since", *lines]
        text = f"val/nll {first['nll']:.3f} -> {last['nll']:.3f} nats"
        text += f", mean p {mean_p:.3f}" if mean_p is not None else ""
        text += f"; best {best['nll']:.3f} after step {best['step']}" if best["step"] != last["step"] else ""
        lines.insert(0, text)
    for name, change in (record.get("forgetting") or {}).items():
        if name != "validation":
            lines.append(f"val/{name}/nll {change['nll']['initial']:.3f} -> {change['nll']['final']:.3f} nats")
    return lines


def _accuracies(record: Mapping[str, Any]) -> list[str]:
    """The accuracy of each task that the run evaluates, before and after training."""
    evaluation = record.get("evaluation") or {}
    first, last = ((evaluation.get(when) or {}).get("tasks", {}) for when in ("first", "last"))
    lines = []
    for task, numbers in last.items():
        before = f"{100 * first[task]['accuracy']['mean']:.1f} -> " if task in first else ""
        lines.append(f"{task} {before}{100 * numbers['accuracy']['mean']:.1f} %")
    return lines


def duration(seconds: float) -> str:
    """A duration for people: 5.2 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
