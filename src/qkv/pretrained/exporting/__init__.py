"""Models of this package written as others read them: folders of Hugging Face, ONNX graphs, CTranslate2 models."""

from qkv.pretrained.exporting.ctranslate2 import to_ctranslate2
from qkv.pretrained.exporting.folders import copied, whole_folder
from qkv.pretrained.exporting.hugging_face import to_hugging_face
from qkv.pretrained.exporting.onnx import to_onnx

__all__ = ["copied", "to_ctranslate2", "to_hugging_face", "to_onnx", "whole_folder"]
