"""The configuration language: what is read from files and flags, and what is refused before anything is built."""
