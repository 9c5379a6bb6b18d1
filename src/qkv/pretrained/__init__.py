"""Published models: their weights, their tokenizers, and the tables that place both in the project's own modules."""

from qkv.pretrained.checkpoint import PretrainedModel, load, load_spec, save

__all__ = ["PretrainedModel", "load", "load_spec", "save"]
