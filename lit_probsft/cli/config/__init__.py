"""The configuration language: parsing of files and flags, checks before anything is built, and error messages."""
