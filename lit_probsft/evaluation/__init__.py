"""Grades a model's answers: benchmarks, generation, grades, and numbers with error bars."""
