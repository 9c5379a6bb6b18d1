"""See-through Transformers: train, run and look inside, on one implementation."""

__version__ = "0.1.0"
