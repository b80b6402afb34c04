"""`ProbSFTModule` and what goes on around a step: metrics, schedule, checkpoints, resuming, stopping."""
