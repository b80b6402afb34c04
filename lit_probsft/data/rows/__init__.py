"""Rows: sources, formats, conversations, mixtures, streams."""
