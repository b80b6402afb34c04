"""Benchmarks: each is a small class with rows, a prompt and a grade."""
