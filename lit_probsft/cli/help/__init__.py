"""`--help` of fit and of the commands that share its flags: read from the source files, so that it answers at once."""
