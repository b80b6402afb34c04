"""What models know and what training did to them, measured over the rows of a configuration."""
