"""Exports of models to other formats: Hugging Face folders, ONNX graphs, CTranslate2 models."""

from qkv.pretrained.export.ctranslate2 import to_ctranslate2
from qkv.pretrained.export.hugging_face import to_hugging_face
from qkv.pretrained.export.onnx import to_onnx
from qkv.pretrained.export.output_folder import copy_sidecar_files, create_folder

__all__ = ["copy_sidecar_files", "to_ctranslate2", "to_hugging_face", "to_onnx", "create_folder"]
