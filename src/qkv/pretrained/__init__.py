"""Published models: their weights, their tokenizers, and the tables that place both in the project's own modules."""

from qkv.pretrained.generation import Generation
from qkv.pretrained.reading import Published, read, read_spec, write

__all__ = ["Generation", "Published", "read", "read_spec", "write"]
