"""Decides whether an answer is right. A grader never raises and never hangs."""

from lit_probsft.evaluation.grading.grade import Grade

__all__ = ["Grade"]
