"""Files that survive a crash: atomic writing, checkpoint files, the hub, adapter folders."""
