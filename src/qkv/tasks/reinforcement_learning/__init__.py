"""Decision Transformers: recipes, training, rollouts and agents."""
