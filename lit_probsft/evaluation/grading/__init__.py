"""Decides whether an answer is right. A grader never raises and never hangs."""

from lit_probsft.evaluation.grading.grade import Grade
from lit_probsft.evaluation.grading.math import grade_math

__all__ = ["Grade", "grade_math"]
