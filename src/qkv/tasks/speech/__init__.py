"""Speech recognition and audio classification: recipes, training and models."""
