"""Turns rows into cached documents, and documents into micro-batches: the token store, plans, packing, loaders."""
