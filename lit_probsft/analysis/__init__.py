"""What a model knows and what training did to it, measured on the rows of a configuration."""
