"""Timings and demonstrations: each module is a command, `python -m benchmarks.NAME`, that writes JSON to results."""
