"""Timings and demonstrations: each module is a command, `python -m benchmarks.NAME`, that writes one JSON to results/."""
