"""Training: the module, its metrics, optimizer and schedule, checkpoints, and stopping."""
