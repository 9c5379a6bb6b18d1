"""Published models: their weights, their tokenizers, and the tables that map both to this package's modules."""

from qkv.pretrained.checkpoint import PretrainedModel, load, load_spec, save

__all__ = ["PretrainedModel", "load", "load_spec", "save"]
