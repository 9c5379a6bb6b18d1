"""Load published models with everything they need: tokenizers, image processors and audio features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qkv import pretrained, spec
from qkv.data.audio import features
from qkv.data.images import processing
from qkv.data.trajectories.episodes import SpaceSpec
from qkv.data.trajectories.windows import TrajectoryNormalizer
from qkv.decoding import DecodingConfig, Greedy, LengthLimit
from qkv.errors import CheckpointError
from qkv.models.dual_encoder import DualEncoder
from qkv.pretrained import PretrainedModel, tokenizers
from qkv.tasks.encoder_model import EncoderModel
from qkv.tasks.image_text.model import ImageTextModel
from qkv.tasks.model_folder import read_json
from qkv.tasks.registry import TASKS, Task
from qkv.tasks.reinforcement_learning.model import DecisionTransformerAgent
from qkv.tasks.speech.transcription import SpeechFrontend
from qkv.tasks.text_generator import TextGenerator

_MAX_NEW_TOKENS = 64
"""The number of tokens that a language model generates by default."""


def load_pretrained(
    path: Path, dtype: torch.dtype | None = torch.float32, *, allow_pickle: bool = False, blocks: bool = False
) -> TextGenerator | EncoderModel | ImageTextModel | DecisionTransformerAgent:
    """Load a published model with its tokenizer, image processor or audio features.

    Raises CheckpointError or VocabularyError for files that are missing, damaged or of an unknown kind.
    """
    published = pretrained.load(path, dtype=dtype, allow_pickle=allow_pickle, keep_quantized=blocks)
    shape = published.model.spec
    if isinstance(shape, spec.DualEncoder):
        assert isinstance(published.model, DualEncoder)
        preparation = processing.image_processor_from_config(_read_preprocessor_config(path, "CLIPImageProcessor"))
        return ImageTextModel(published.model, preparation, tokenizers.load(path, published.config))
    if isinstance(shape, spec.Recurrent):
        return _build_text_generator(published, path, "pronunciation")
    if shape.decoder is not None:
        reads = (shape.encoder or shape.decoder).input
        if isinstance(reads, spec.Tokens):
            return _build_text_generator(published, path, "translation" if shape.encoder else "text-generation")
        return _build_speech_recognizer(published, path)
    assert shape.encoder is not None
    if isinstance(reads := shape.encoder.input, spec.Trajectory):  # it is given numbers as they are
        sizes = SpaceSpec(reads.state_dim, reads.action_dim, (-1.0,) * reads.action_dim, (1.0,) * reads.action_dim)
        return DecisionTransformerAgent(
            published.model,
            TrajectoryNormalizer(sizes, (0.0,) * reads.state_dim, (1.0,) * reads.state_dim, 1.0, 0.0),
            None,
        )
    labels = published.config.get("id2label") or {}
    named = tuple(str(labels[key]) for key in sorted(labels, key=int))
    task = _select_task(shape.head)
    if isinstance(shape.encoder.input, spec.Tokens):
        return EncoderModel(published.model, tokenizers.load(path, published.config), task, named)
    if isinstance(shape.encoder.input, spec.Patches):
        usual = _DEFAULT_IMAGE_PROCESSORS.get(str(published.config.get("model_type")), "none")
        return EncoderModel(
            published.model, processing.image_processor_from_config(_read_preprocessor_config(path, usual)), task, named
        )
    return EncoderModel(
        published.model,
        features.features_from_config(_read_preprocessor_config(path)),
        TASKS["token-classification"],
        named,
    )


def _select_task(answers: spec.Head) -> Task:
    names = {spec.Vocabulary: "fill-mask", spec.Classes: "classification", spec.Labels: "token-classification"}
    return TASKS[names.get(type(answers), "feature-extraction")]


def _build_text_generator(published: PretrainedModel, path: Path, task: str) -> TextGenerator:
    own = tokenizers.build_symbol_tokenizers(published.config)
    if path.is_file() and path.suffix == ".gguf":  # its header has been read
        own = (tokenizers.build_gguf_tokenizer(published.metadata, str(path)),) * 2
    source, target = own or tokenizers.load_pair(tokenizers.find_tokenizer(path), published.config)
    decoding = (
        DecodingConfig() if task == "translation" else DecodingConfig(Greedy(), LengthLimit(0.0, _MAX_NEW_TOKENS))
    )
    return TextGenerator(published.model, source, target, TASKS[task], decoding, generation=published.generation)


def _build_speech_recognizer(published: PretrainedModel, path: Path) -> TextGenerator:
    """Build a speech recognizer with its features.

    A CTranslate2 folder may have no preprocessor_config.json: it then has the features of every Whisper model.
    """
    shape = published.model.spec
    assert isinstance(shape, spec.Transformer) and shape.encoder is not None
    reads = shape.encoder.input
    if isinstance(reads, spec.Frames) and not (path / "preprocessor_config.json").exists():
        settings: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": reads.mels}
    else:
        settings = _read_preprocessor_config(path)
    feature_config = features.features_from_config(settings)
    if not isinstance(feature_config, features.LogMel):
        raise CheckpointError(
            f"{path}/preprocessor_config.json computes no log-mel spectrogram, "
            "which this model expects; copy the file from where the model came from"
        )
    tokenizer = tokenizers.load(path, published.config)
    decoding = DecodingConfig(Greedy(), LengthLimit(0.0, 200))
    return TextGenerator(
        published.model,
        tokenizer,
        tokenizer,
        TASKS["speech-recognition"],
        decoding,
        generation=published.generation,
        frontend=SpeechFrontend(feature_config),
    )


def _read_preprocessor_config(path: Path, default_type: str = "none") -> dict[str, Any]:
    """Read preprocessor_config.json in a model's folder or next to its single file, or the processor_config.json that
    newer
    ones have in its place; older ones do not name their class, and mean the default one.
    """
    folder = path if path.is_dir() else path.parent
    place, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not place.is_file() and newer.is_file():
        return read_json(newer)
    if not place.is_file():
        raise CheckpointError(
            f"{place} is not there; it says how images or audio are prepared for {path}: copy it from where the model "
            "came from, or write it as the Hugging Face Hub's have it"
        )
    return {"feature_extractor_type": default_type, **read_json(place)}


_DEFAULT_IMAGE_PROCESSORS = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
}
"""The image processor of each `model_type`, as transformers' AutoImageProcessor has it."""
