"""Files that survive a crash: atomic writes, checkpoints, adapter folders, and what comes from the hub."""
