"""Decides whether an answer is right. A grader never raises and never hangs."""

from lit_probsft.evaluation.grading.choice import grade_choice
from lit_probsft.evaluation.grading.grade import Grade
from lit_probsft.evaluation.grading.math import grade_math
from lit_probsft.evaluation.grading.text import grade_exact, jaro_winkler

__all__ = ["Grade", "grade_choice", "grade_exact", "grade_math", "jaro_winkler"]
