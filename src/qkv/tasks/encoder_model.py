"""Models that answer in one forward pass: classifiers, taggers, masked language models and feature extractors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from qkv import config, lens, spec
from qkv.data.audio import features
from qkv.data.audio.frames import pad_to_window
from qkv.data.images import processing, store
from qkv.decoding import DecodingConfig, Greedy, Sample
from qkv.decoding.config import Beam
from qkv.errors import CheckpointError, DataError
from qkv.lens import Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks import model_folder
from qkv.tasks.base import Answer, Capability, TaskModel
from qkv.tasks.registry import Task
from qkv.tasks.text_generator import AudioInput, ImageInput, find_unknown_symbols
from qkv.text import Tokenizer

_IMAGE_BATCH_SIZE = 50


@dataclass(frozen=True)
class ModelInput:
    """One line as the model reads it: the source (1, ...), the names of its positions, and the image or audio."""

    source: Tensor
    position_labels: list[str]
    input: ImageInput | AudioInput | None = None


Parsed = TypeVar("Parsed")

Processor: TypeAlias = Tokenizer | processing.ImageProcessor | features.LogMel | features.NormalizedWaveform
"""What turns a line, or the file that it names, into the input of a model."""


@dataclass(frozen=True)
class _ProcessorSettings:
    """The part of card.json that says how images or audio are processed, and what the classes are called."""

    processor: processing.ImageProcessor | features.LogMel | features.NormalizedWaveform | None
    labels: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class EncoderModel(TaskModel):
    """A model that answers in one forward pass: with a class, labels, filled-in words or a vector.

    processor: turns a line into the input of the model. labels: the names of the classes.
    """

    module: SequenceModel
    processor: Processor
    task: Task
    labels: tuple[str, ...] = ()
    decoding: DecodingConfig = DecodingConfig(Greedy())  # its n_best counts
    card: model_folder.Card = model_folder.Card()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model that reads text."""
        return self.processor if isinstance(self.processor, Tokenizer) else None

    @property
    def is_vision_model(self) -> bool:
        """Whether its lines name image files."""
        return isinstance(self.processor, processing.ImageProcessor)

    def prepare(self, line: str) -> ModelInput:
        """Turn a line into the input of the model. Raises DataError for a file that cannot be read."""
        reads = self._encoder.input
        match self.processor:
            case Tokenizer():
                return _prepare_text(line, self.processor)
            case processing.ImageProcessor():
                assert isinstance(reads, spec.Patches)
                return prepare_image(line, self.processor, reads)
        samples = features.read_audio(line.strip(), self.processor.sample_rate)
        if isinstance(self.processor, features.LogMel):
            samples = pad_to_window(samples, self.processor)
        return ModelInput(self.processor(samples)[None], [], _describe_audio(samples, self.processor, reads))

    @property
    def _encoder(self) -> spec.Stack:
        shape = self.module.spec
        assert isinstance(shape, spec.Transformer) and shape.encoder is not None
        return shape.encoder

    @property
    def _head(self) -> spec.Head:
        shape = self.module.spec
        assert isinstance(shape, spec.Transformer)  # see qkv.tasks.pretrained_loader
        return shape.head

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What its lines name: images, audio, or nothing but text."""
        if isinstance(self.processor, Tokenizer):
            return frozenset()
        return frozenset({"image"} if self.is_vision_model else {"audio"})

    @property
    def audio_features(self) -> features.LogMel | None:
        """The spectrogram features of an audio classifier; None for other models."""
        return self.processor if isinstance(self.processor, features.LogMel) else None

    def predict_waveforms(
        self, waveforms: Iterable[Tensor], decoding: DecodingConfig | None = None
    ) -> Iterator[list[Answer]]:
        """Classify each waveform."""
        assert isinstance(self.processor, features.LogMel)
        return (self.classify_waveform(pad_to_window(one, self.processor)) for one in waveforms)

    def predict_ranked(self, lines: Iterable[str], decoding: DecodingConfig | None = None) -> Iterator[list[Answer]]:
        """Yield the `n_best` answers to each line, best first; an empty line has an empty answer."""
        method = (decoding or self.decoding).method
        count = method.n_best if isinstance(method, Beam | Sample) else 1
        rest = iter(lines)
        while some := list(islice(rest, _IMAGE_BATCH_SIZE if self.is_vision_model else 1)):
            yield from self._predict_batch(some, count)

    @torch.no_grad()
    def classify_waveform(self, waveform: Tensor) -> list[Answer]:
        """Classify a waveform, (samples,) at the sample rate of the processor; the best class first."""
        assert isinstance(self.processor, features.LogMel | features.NormalizedWaveform)
        given = ModelInput(self.processor(waveform)[None], [])
        return self._to_answers(given, self.module(given.source)[0], 1)

    def _predict_batch(self, lines: Sequence[str], count: int) -> Iterator[list[Answer]]:
        """Answer some lines, in one batch if their inputs have the same shape, up to one that cannot be read."""
        given, wrong = parse_until_error(lines, self.prepare)
        full = [one for one in given if one is not None]
        logits: Iterator[Tensor] = iter(())
        if full:
            alike = len({one.source.shape for one in full}) == 1
            sources = [torch.cat([one.source for one in full])] if alike else [one.source for one in full]
            with torch.no_grad():
                logits = chain.from_iterable(self.module(source) for source in sources)
        for one in given:
            yield [Answer("", 0.0, 0.0, ())] if one is None else self._to_answers(one, next(logits), count)
        if wrong is not None:
            raise wrong

    def _to_answers(self, prepared: ModelInput, logits: Tensor, count: int) -> list[Answer]:
        match self._head:
            case spec.Vocabulary():
                return self._fill_masks(prepared.source[0], logits, count)
            case spec.Classes():
                values, order = torch.log_softmax(logits, -1).topk(min(count, len(logits)))
                ranked = zip(values.tolist(), order.tolist(), strict=True)
                return [Answer(self._label_name(number), value, value, (number,)) for value, number in ranked]
            case spec.Labels():
                best = logits.argmax(-1).tolist()
                named = (
                    f"{name}/{self._label_name(number)}"
                    for name, number in zip(prepared.position_labels, best, strict=True)
                )
                return [Answer(" ".join(named), 0.0, 0.0, tuple(best))]
        vector = logits if logits.dim() == 1 else logits.mean(0)
        return [Answer(" ".join(f"{number:.6g}" for number in vector.tolist()), 0.0, 0.0, ())]

    def _fill_masks(self, source: Tensor, logits: Tensor, count: int) -> list[Answer]:
        """Return the text with its masked positions filled: the n-th answer takes the n-th best token at each."""
        assert self.tokenizer is not None
        mask = self.tokenizer.special_tokens.mask
        places = [place for place, token in enumerate(source.tolist()) if token == mask]
        if not places:
            name = "its mask token" if mask is None else repr(self.tokenizer.display_tokens([mask])[0])
            raise DataError(f"the text has no masked position; expected {name} where a word is missing")
        values, order = torch.log_softmax(logits[places], -1).topk(count)
        answers = []
        for value, tokens in zip(values.T.tolist(), order.T.tolist(), strict=True):
            whole = source.tolist()
            for place, token in zip(places, tokens, strict=True):
                whole[place] = token
            answers.append(Answer(self.tokenizer.decode(whole), sum(value), sum(value), tuple(tokens)))
        return answers

    def _label_name(self, class_id: int) -> str:
        return self.labels[class_id] if class_id < len(self.labels) else str(class_id)

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of the tokens or classes of an answer."""
        if isinstance(self._head, spec.Vocabulary) and self.tokenizer is not None:
            return self.tokenizer.display_tokens(ids)
        return [self._label_name(number) for number in ids]

    def unknown_symbols(self, line: str) -> list[str]:
        """Return the characters of a line that are not in the vocabulary, each once."""
        return [] if self.tokenizer is None else find_unknown_symbols(self.tokenizer, line)

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Trace:
        """Answer a line and return a trace of every attention that led to the answer.

        tap: intervenes in the forward pass. Raises DataError for a line without text, and if an answer is given.
        """
        if answer is not None:
            raise DataError(f"answer={answer!r} was given; this model reads no answers: leave it out")
        if not line.strip():
            raise DataError(f"{line!r} was given to look at; expected some text or a file")
        given = self.prepare(line)
        trace = lens.look(self.module.eval(), given.source, tap=tap)
        assert trace.logits is not None
        own = self._to_answers(given, trace.logits[0], 1)[0]
        if self.task.name == "feature-extraction":  # a vector is no choice among its numbers
            trace = replace(trace, logits=None)
        return replace(
            trace,
            text=line,
            answer=own,
            source_tokens=given.position_labels,
            input=given.input,
            token_names=self.token_names,
        )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `TextGenerator.save` does."""
        tokenizer = self.tokenizer
        prepared = None if isinstance(self.processor, Tokenizer) else self.processor
        card = {
            **self.card.to_json(),
            "task": self.task.name,
            **config.to_dict(_ProcessorSettings(prepared, self.labels)),
            **({} if tokenizer is None else {"tokenizers": {"source": tokenizer.digest}}),
        }
        files = {} if tokenizer is None else {"source.tokenizer.json": tokenizer.save}
        model_folder.write_model_folder(Path(folder), self.module, card, files, dtype)

    @classmethod
    def from_folder(cls, folder: Path, loaded: model_folder.LoadedFolder) -> EncoderModel:
        """Build the model of a folder with its processor.

        Raises CheckpointError or ConfigError for a card that does not fit the model, VocabularyError for a tokenizer
        of another model.
        """
        where, settings = f"{folder}/card.json", loaded.read_settings(_ProcessorSettings)
        prepared: Processor | None = settings.processor
        if prepared is None:
            model_folder.require_files(folder, "source.tokenizer.json")
            prepared = Tokenizer.load(folder / "source.tokenizer.json")
            loaded.check_tokenizers(source=prepared)
        found = cls(loaded.model, prepared, loaded.task, settings.labels, card=loaded.card)
        reads, answers = found._encoder.input, found._head
        if not isinstance(prepared, _PROCESSOR_TYPES[type(reads)]):
            raise CheckpointError(
                f"{where}: processor is {type(prepared).__name__}, and the model reads {type(reads).__name__}; "
                "take both files from the same run"
            )
        if (
            isinstance(answers, spec.Classes | spec.Labels)
            and settings.labels
            and len(settings.labels) != answers.count
        ):
            raise CheckpointError(
                f"{where}: labels names {len(settings.labels)} classes, and the model has {answers.count}; "
                "take both files from the same run"
            )
        return found


def parse_until_error(
    lines: Iterable[str], parse: Callable[[str], Parsed]
) -> tuple[list[Parsed | None], DataError | None]:
    """Parse lines up to the first that cannot be read, an empty one as None; return them and the error."""
    given: list[Parsed | None] = []
    for line in lines:
        try:
            given.append(parse(line) if line.strip() else None)
        except DataError as error:
            return given, error
    return given, None


def _prepare_text(line: str, tokenizer: Tokenizer) -> ModelInput:
    first, _, second = line.partition("\t")  # two texts that belong together stand side by side
    ids = tokenizer.encode_with_special_tokens(first, second or None).ids
    return ModelInput(torch.tensor([ids]), tokenizer.display_tokens(ids))


def prepare_image(line: str, processor: processing.ImageProcessor, patches: spec.Patches) -> ModelInput:
    """Turn the image that a line names into the input of a model. Raises DataError if it cannot be read."""
    image = processor.preprocess(store.load_image(line.strip()))
    rows, columns = (side // patches.size for side in image.shape[1:])
    leading = [f"<{number + 1}>" for number in range(patches.class_tokens + patches.registers)]
    places = [f"{row + 1},{column + 1}" for row in range(rows) for column in range(columns)]
    return ModelInput(
        image[None], leading + places, ImageInput(processor.denormalize(image), rows, columns, len(leading))
    )


def _describe_audio(
    samples: Tensor, processor: features.LogMel | features.NormalizedWaveform, input_spec: spec.Input
) -> AudioInput:
    """Return the waveform with how many seconds each position of the encoder covers."""
    hop = processor.hop_length if isinstance(processor, features.LogMel) else 1
    if isinstance(input_spec, spec.Waveform):
        hop *= math.prod(one.stride for one in input_spec.convolutions)
    elif isinstance(input_spec, spec.Frames):
        hop *= input_spec.frames_per_position
    return AudioInput(samples, processor.sample_rate, hop / processor.sample_rate)


_PROCESSOR_TYPES: dict[type[spec.Input], type[Processor]] = {
    spec.Tokens: Tokenizer,
    spec.Patches: processing.ImageProcessor,
    spec.Frames: features.LogMel,
    spec.Waveform: features.NormalizedWaveform,
}
"""The type of the processor of each input."""
