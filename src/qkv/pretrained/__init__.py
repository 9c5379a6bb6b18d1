"""Published models: their weights, their tokenizers, and the tables that place both in the project's own modules."""

from qkv.pretrained.checkpoint import PretrainedModel, load, load_spec, save
from qkv.pretrained.generation_config import GenerationConfig

__all__ = ["GenerationConfig", "PretrainedModel", "load", "load_spec", "save"]
