"""Benchmarks: each is a small class with rows, a prompt and a grade."""

from lit_probsft.evaluation.tasks.base import Question, Task
from lit_probsft.evaluation.tasks.choices import Choices, Medical, MMLUProX, OpenBookQA, PubMedQA
from lit_probsft.evaluation.tasks.exact import Exact, Figlet
from lit_probsft.evaluation.tasks.math import AIME24, AIME25, AMC23, GSM8K, Math, Math500, MinervaMath, OlympiadBench
from lit_probsft.evaluation.tasks.registry import tasks_named
from lit_probsft.evaluation.tasks.subset import chosen

__all__ = [
    "AIME24",
    "AIME25",
    "AMC23",
    "GSM8K",
    "Choices",
    "Exact",
    "Figlet",
    "MMLUProX",
    "Math",
    "Math500",
    "Medical",
    "MinervaMath",
    "OlympiadBench",
    "OpenBookQA",
    "PubMedQA",
    "Question",
    "Task",
    "chosen",
    "tasks_named",
]
