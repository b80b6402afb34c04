"""How the paper measures: prompts, system texts, sampling and averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Any

from lit_probsft.errors import UserError
from lit_probsft.evaluation.paper_rows import MATH
from lit_probsft.evaluation.settings import Settings
from lit_probsft.evaluation.tasks.base import Task
from lit_probsft.evaluation.tasks.math import STEP_BY_STEP
from lit_probsft.evaluation.tasks.registry import BENCHMARKS


@dataclass(frozen=True)
class Protocol:
    """How the paper measures one task.

    Attributes:
        max_new_tokens, n, temperature, system: as in `Settings`. The number of a task is the mean over all n answers;
            the `acc` of the authors' code is that of the first one alone.
        fields: of the task: its prompt, and which choice of an answer counts.
    """

    max_new_tokens: int
    n: int = 1
    temperature: float = 0.0
    system: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


_HELPFUL = "You are a helpful assistant."
_DECODER = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it represents "
    "and output only that without any explanations or additional text."
)
_MATH = Protocol(4096, n=16, temperature=1.0, system=_HELPFUL, fields={"prompt": "{question}\n" + STEP_BY_STEP})
_MEDICAL = {"prompt": "{question}\n{choices}\n" + STEP_BY_STEP, "last_named": True}
_OPENBOOKQA = "Please complete the following multiple choice question.\nQuestion: {question}\nOptions:\n{choices}"

MEANS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "math": MATH,
        "medical": ("medical",),
        "languages": ("mmlu_prox",),
    }
)
"""The tasks behind each mean that the paper prints."""

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        **dict.fromkeys(MEANS["math"], _MATH),
        "medical": Protocol(1024, system=_HELPFUL, fields=_MEDICAL),
        "figlet": Protocol(5, system=_DECODER, fields={"prompt": "{question}"}),
        "openbookqa": Protocol(128, fields={"prompt": _OPENBOOKQA}),
        "mmlu_prox": Protocol(1024),  # the authors' prompt is not published
    }
)
"""By the name of the benchmark. All sample with top_p 1."""


def apply_protocols(tasks: Mapping[str, Task], settings: Settings) -> tuple[dict[str, Task], dict[str, Settings]]:
    """The tasks as the paper asks them, and the settings of each.

    Args:
        tasks: by name.
        settings: `n`, `temperature`, `top_p`, `max_new_tokens` and `system` are replaced.

    Raises:
        UserError: the paper does not have one of the tasks.
    """
    names = {kind: name for name, kind in BENCHMARKS.items()}
    asked: dict[str, Task] = {}
    drawn: dict[str, Settings] = {}
    for name, task in tasks.items():
        protocol = PROTOCOLS.get(names.get(type(task), ""))
        if protocol is None:
            raise UserError("paper", f"expected only tasks of the paper, {', '.join(PROTOCOLS)}, got {name}")
        sampling = {**vars(protocol), "top_p": 1.0}
        asked[name] = dataclasses.replace(task, **sampling.pop("fields"))
        drawn[name] = dataclasses.replace(settings, **sampling)
    return asked, drawn


def paper_means(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The means that the paper prints, where all their parts were measured.

    A mean counts each task once. A task with groups counts each group once, whatever its number of questions.

    Args:
        tasks: the numbers of each task, `tasks` of a results file.

    Returns:
        Shares of right answers from 0 to 1, by the names of `MEANS`.
    """
    return {
        domain: fmean((tasks[name]["group_mean"] or tasks[name]["accuracy"])["mean"] for name in names)
        for domain, names in MEANS.items()
        if all(name in tasks for name in names)
    }
