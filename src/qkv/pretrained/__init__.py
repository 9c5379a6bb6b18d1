"""Published models: their weights, their tokenizers, and the tables that place both in the project's own modules."""

from qkv.pretrained.generation_config import GenerationConfig
from qkv.pretrained.checkpoint import PretrainedModel, load, load_spec, save

__all__ = ["GenerationConfig", "PretrainedModel", "load", "load_spec", "save"]
