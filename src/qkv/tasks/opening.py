"""Published models, opened with everything they need: their tokenizers, and what prepares their images and sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qkv import pretrained, spec
from qkv.data import audio, images
from qkv.data.steps import Shown
from qkv.data.trajectories import Sizes
from qkv.decoding import Decoding, Greedy, Length
from qkv.errors import CheckpointError
from qkv.models.towers import Towers
from qkv.pretrained import Published, tokenizers
from qkv.tasks.agent import Agent
from qkv.tasks.folders import read_json
from qkv.tasks.kinds import TASKS, Task
from qkv.tasks.listening import Hearing
from qkv.tasks.matching import Matcher
from qkv.tasks.published import Predictor
from qkv.tasks.runner import Runner

_LONGEST = 64
"""How many tokens a language model goes on for, unless told otherwise."""


def open_published(
    path: Path, dtype: torch.dtype | None = torch.float32, *, legacy: bool = False, blocks: bool = False
) -> Runner | Predictor | Matcher | Agent:
    """Open a published model with its tokenizer, or with what prepares its images or sounds.

    Raises CheckpointError or VocabularyError for files that are missing, damaged or of an unknown kind.
    """
    published = pretrained.read(path, dtype=dtype, legacy=legacy, blocks=blocks)
    shape = published.model.spec
    if isinstance(shape, spec.Towers):
        assert isinstance(published.model, Towers)
        preparation = images.from_config(_preprocessor(path, "CLIPImageProcessor"))
        return Matcher(published.model, preparation, tokenizers.read(path, published.config))
    if isinstance(shape, spec.Recurrent):
        return _writer(published, path, "pronounce")
    if shape.decoder is not None:
        reads = (shape.encoder or shape.decoder).reads
        if isinstance(reads, spec.Tokens):
            return _writer(published, path, "translate" if shape.encoder else "continue")
        return _hearing(published, path)
    assert shape.encoder is not None
    if isinstance(reads := shape.encoder.reads, spec.Trajectory):  # it is given numbers as they are
        sizes = Sizes(reads.state, reads.action, (-1.0,) * reads.action, (1.0,) * reads.action)
        return Agent(published.model, Shown(sizes, (0.0,) * reads.state, (1.0,) * reads.state, 1.0, 0.0), None)
    labels = published.config.get("id2label") or {}
    named = tuple(str(labels[key]) for key in sorted(labels, key=int))
    task = _task(shape.answers)
    if isinstance(shape.encoder.reads, spec.Tokens):
        return Predictor(published.model, tokenizers.read(path, published.config), task, named)
    if isinstance(shape.encoder.reads, spec.Patches):
        usual = _USUAL.get(str(published.config.get("model_type")), "none")
        return Predictor(published.model, images.from_config(_preprocessor(path, usual)), task, named)
    return Predictor(published.model, audio.from_config(_preprocessor(path)), TASKS["label"], named)


def _task(answers: spec.Answers) -> Task:
    names = {spec.Vocabulary: "fill", spec.Classes: "classify", spec.Labels: "label"}
    return TASKS[names.get(type(answers), "embed")]


def _writer(published: Published, path: Path, task: str) -> Runner:
    own = tokenizers.of_symbols(published.config)
    if path.is_file() and path.suffix == ".gguf":  # its header has been read
        own = (tokenizers.from_gguf(published.metadata, str(path)),) * 2
    source, target = own or tokenizers.read_pair(tokenizers.beside(path), published.config)
    decoding = Decoding() if task == "translate" else Decoding(Greedy(), Length(0.0, _LONGEST))
    return Runner(published.model, source, target, TASKS[task], decoding, {}, published.generation)


def _hearing(published: Published, path: Path) -> Runner:
    """A model that hears and writes: its features, and answers as long as its decoder can count.

    A folder of CTranslate2's may hold no preprocessor_config.json: its features are those of every Whisper.
    """
    shape = published.model.spec
    assert isinstance(shape, spec.Transformer) and shape.encoder is not None
    reads = shape.encoder.reads
    if isinstance(reads, spec.Frames) and not (path / "preprocessor_config.json").exists():
        said: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": reads.mels}
    else:
        said = _preprocessor(path)
    hearing = audio.from_config(said)
    if not isinstance(hearing, audio.LogMel):
        raise CheckpointError(f"{path}/preprocessor_config.json makes no spectrogram, which this model reads")
    tokenizer = tokenizers.read(path, published.config)
    decoding = Decoding(Greedy(), Length(0.0, 200))
    return Runner(
        published.model, tokenizer, tokenizer, TASKS["transcribe"], decoding, {}, published.generation, Hearing(hearing)
    )


def _preprocessor(path: Path, usual: str = "none") -> dict[str, Any]:
    """What preprocessor_config.json says, in a model's folder or beside its one file, or the processor_config.json that
    newer ones have in its place; older ones do not name what reads them, and mean the usual one."""
    folder = path if path.is_dir() else path.parent
    place, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not place.is_file() and newer.is_file():
        return read_json(newer)
    if not place.is_file():
        raise CheckpointError(
            f"{place} is not there; it says how images or sounds are prepared for {path}: copy it from where the model "
            "came from, or write it as the Hugging Face Hub's have it"
        )
    return {"feature_extractor_type": usual, **read_json(place)}


_USUAL = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
}
"""What prepares the images of a `model_type`, as transformers' AutoImageProcessor has it."""
