"""What models and runs turn out to be like."""
