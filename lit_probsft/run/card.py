"""The model card: README.md of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_card(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of a run's record that its model card shows."""
    return {
        "name": name,
        "base_model": (content.get("model") or {}).get("name"),
        "objective": {k: v for k, v in (content.get("objective") or {}).items() if v is not None},
        "recipe": content.get("recipe"),
        "data": {"fingerprint": content.get("data_fingerprint"), **_split_counts(content.get("data") or {})},
        "commits": content.get("commits"),
        "metrics": content.get("metrics"),
    }


def _split_counts(report: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("source", "kept", "dropped", "truncated", "skipped", "in_validation", "tokens", "supervised_tokens")
    return {
        split: {k: facts[k] for k in wanted if k in facts} for split, facts in report.items() if isinstance(facts, dict)
    }


def model_card(card: Mapping[str, Any]) -> str:
    """README.md of an exported model: what it was trained with, and how well it did, from plain data."""
    import yaml

    base = card.get("base_model")
    front: dict[str, Any] = {
        "library_name": "peft" if card.get("adapter") else "transformers",
        "tags": ["lit_probsft", "sft"],
        "pipeline_tag": "text-generation",
    }
    # Only a hub id may stand here; a folder would make the hub refuse the card.
    if base and base.count("/") == 1 and not Path(base).exists() and " " not in base:
        front["base_model"] = base
    objective = card.get("objective") or {}
    name = str(objective.get("class_path", "unknown objective")).rsplit(".", 1)[-1]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", ""]
    lines += [f"# {card.get('name', 'Fine-tuned model')}", ""]
    what = "Adapters of" if card.get("adapter") else "Fine-tuned from"
    lines += [f"{what} {base or 'an unknown model'} with lit_probsft; objective **{name}**.", ""]
    if card.get("adapter"):
        lines += ["`peft.AutoPeftModelForCausalLM.from_pretrained` loads them together with that model.", ""]
    for title, key in (
        ("Objective", "objective"),
        ("Recipe", "recipe"),
        ("Data", "data"),
        ("Commits on the hub", "commits"),
    ):
        if card.get(key):
            lines += [f"## {title}", "", "```yaml", yaml.safe_dump(card[key], sort_keys=False).strip(), "```", ""]
    metrics = {k: v for k, v in (card.get("metrics") or {}).items() if isinstance(v, int | float)}
    if metrics:
        lines += [
            "## Metrics",
            "",
            "NLL and its relatives are in nats per supervised token.",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {k} | {v:.6g} |" for k, v in sorted(metrics.items())] + [""]
    return "\n".join(lines)
