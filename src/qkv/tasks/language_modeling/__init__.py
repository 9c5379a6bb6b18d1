"""Language modeling: recipes, training and models."""
