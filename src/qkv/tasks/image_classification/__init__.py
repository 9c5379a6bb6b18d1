"""Image classification: recipes, training and models."""
