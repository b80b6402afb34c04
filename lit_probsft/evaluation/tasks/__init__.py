"""Benchmarks: each is a small class with rows, a prompt and a grade."""

from lit_probsft.evaluation.tasks.base import Question, Task
from lit_probsft.evaluation.tasks.choices import Choices
from lit_probsft.evaluation.tasks.exact import Exact
from lit_probsft.evaluation.tasks.math import Math
from lit_probsft.evaluation.tasks.registry import tasks_named

__all__ = ["Choices", "Exact", "Math", "Question", "Task", "tasks_named"]
