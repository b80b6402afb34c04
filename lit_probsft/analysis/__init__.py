"""What a model knows before training, and what training did."""
