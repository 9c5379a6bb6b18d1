"""Translation, pronunciation and other tasks from text to text: recipes, training and models."""
