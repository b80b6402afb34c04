"""The model card: the README.md of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def card_facts(record: Mapping[str, Any], name: str, step: int) -> dict[str, Any]:
    """What the model card says about a run.

    Args:
        record: the content of run.json.
        name: of the run.
        step: the optimizer step after which the model is exported.
    """
    return {
        "name": name,
        "step": step,
        "base_model": (record.get("model") or {}).get("name"),
        "objective": {k: v for k, v in (record.get("objective") or {}).items() if v is not None},
        "recipe": record.get("recipe"),
        "data": {"fingerprint": record.get("data_fingerprint"), **_split_counts(record.get("data") or {})},
        "commits": record.get("commits"),
        "metrics": record.get("metrics"),
    }


def _split_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("source", "kept", "dropped", "truncated", "skipped", "in_validation", "tokens", "supervised_tokens")
    return {
        split: {k: facts[k] for k in wanted if k in facts} for split, facts in report.items() if isinstance(facts, dict)
    }


def _after(facts: Mapping[str, Any]) -> str:
    return "" if facts.get("step") is None else f"; after optimizer step {facts['step']}"


def model_card(facts: Mapping[str, Any]) -> str:
    """The text of the model card.

    Args:
        facts: of `card_facts`; `adapter` is true for adapters without their base model.
    """
    import yaml

    base, adapter = facts.get("base_model"), facts.get("adapter")
    front: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "tags": ["lit_probsft", "sft"],
        "pipeline_tag": "text-generation",
    }
    # The hub refuses a card whose base_model is not a hub id.
    if base and base.count("/") == 1 and not Path(base).exists() and " " not in base:
        front["base_model"] = base
    objective = facts.get("objective") or {}
    name = str(objective.get("class_path", "unknown objective")).rsplit(".", 1)[-1]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", ""]
    lines += [f"# {facts.get('name', 'Fine-tuned model')}", ""]
    kind = "Adapters of" if adapter else "Fine-tuned from"
    lines += [f"{kind} {base or 'an unknown model'} with lit_probsft; objective **{name}**{_after(facts)}.", ""]
    if adapter and base and base.endswith(".gguf"):
        lines += ["`lit_probsft.model.PretrainedCausalLM` loads them together with that model, a GGUF file.", ""]
    elif adapter:
        lines += ["`peft.AutoPeftModelForCausalLM.from_pretrained` loads them together with that model.", ""]
    for title, key in (
        ("Objective", "objective"),
        ("Recipe", "recipe"),
        ("Data", "data"),
        ("Commits on the hub", "commits"),
    ):
        if facts.get(key):
            lines += [f"## {title}", "", "```yaml", yaml.safe_dump(facts[key], sort_keys=False).strip(), "```", ""]
    metrics = {k: v for k, v in (facts.get("metrics") or {}).items() if isinstance(v, int | float)}
    if metrics:
        lines += [
            "## Metrics",
            "",
            "Loss, NLL and entropy are in nats per supervised token.",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {k} | {v:.6g} |" for k, v in sorted(metrics.items())] + [""]
    return "\n".join(lines)
