"""Rows: where they come from, which format they have, conversations, mixtures."""
