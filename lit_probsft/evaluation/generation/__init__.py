"""Generates answers: in this process, or on a server."""
