"""Published models, opened with everything they need to answer: text, images or sounds in, their own answers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from qkv import config, lens, spec
from qkv.data import audio, images, pictures
from qkv.data.frames import at_least
from qkv.decoding import Decoding, Greedy, Sample
from qkv.decoding.options import Beam
from qkv.errors import CheckpointError, DataError
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks import folders
from qkv.tasks.kinds import Task
from qkv.tasks.runner import Answer, Looked, Picture, Sound, strange_to
from qkv.text import Tokenizer

_IMAGES_AT_ONCE = 50


@dataclass(frozen=True)
class Given:
    """One line as the model is given it: source (1, ...), what to call its positions, what was seen or heard."""

    source: Tensor
    names: list[str]
    perceived: Picture | Sound | None = None


Read = TypeVar("Read")

Preparation: TypeAlias = Tokenizer | images.ImagePreparation | audio.LogMel | audio.Waveform
"""What makes of a line, or of the file that it names, what a model reads."""


@dataclass(frozen=True)
class _Kept:
    """The part of a card that says how images or sounds are prepared, and what the classes are called."""

    preparation: images.ImagePreparation | audio.LogMel | audio.Waveform | None
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Predictor:
    """A model that answers at once: with a class, labels, filled-in words or a vector.

    preparation: how a line becomes what the model reads. labels: the names of its classes.
    """

    model: SequenceModel
    preparation: Preparation
    task: Task
    labels: tuple[str, ...] = ()
    decoding: Decoding = Decoding(Greedy())  # its n_best counts
    card: dict[str, Any] | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model that reads text."""
        return self.preparation if isinstance(self.preparation, Tokenizer) else None

    @property
    def sees(self) -> bool:
        """Whether its lines mean images."""
        return isinstance(self.preparation, images.ImagePreparation)

    def give(self, line: str) -> Given:
        """What the model reads of a line. Raises DataError for a file that cannot be read."""
        reads = self._encoder.reads
        match self.preparation:
            case Tokenizer():
                return _text(line, self.preparation)
            case images.ImagePreparation():
                assert isinstance(reads, spec.Patches)
                return picture(line, self.preparation, reads)
        samples = audio.read(line.strip(), self.preparation.rate)
        if isinstance(self.preparation, audio.LogMel):
            samples = at_least(samples, self.preparation)
        return Given(self.preparation(samples)[None], [], _sound(samples, self.preparation, reads))

    @property
    def _encoder(self) -> spec.Stack:
        shape = self.model.spec
        assert isinstance(shape, spec.Transformer) and shape.encoder is not None
        return shape.encoder

    @property
    def _answer(self) -> spec.Answers:
        shape = self.model.spec
        assert isinstance(shape, spec.Transformer)  # see qkv.tasks.opening
        return shape.answers

    def run(self, lines: Iterable[str], decoding: Decoding | None = None) -> Iterator[list[Answer]]:
        """Answer each line, best answer first, as many answers as n_best says; an empty line answers itself."""
        method = (decoding or self.decoding).method
        count = method.n_best if isinstance(method, Beam | Sample) else 1
        rest = iter(lines)
        while some := list(islice(rest, _IMAGES_AT_ONCE if self.sees else 1)):
            yield from self._all(some, count)

    @torch.no_grad()
    def name(self, samples: Tensor) -> list[Answer]:
        """Answer a sound, samples (samples,) at the rate of the preparation, best answer first."""
        assert isinstance(self.preparation, audio.LogMel | audio.Waveform)
        given = Given(self.preparation(samples)[None], [])
        return self._answers(given, self.model(given.source)[0], 1)

    def _all(self, lines: Sequence[str], count: int) -> Iterator[list[Answer]]:
        """Answer some lines together if what they give is alike, up to one that cannot be read."""
        given, wrong = up_to_wrong(lines, self.give)
        full = [one for one in given if one is not None]
        logits: Iterator[Tensor] = iter(())
        if full:
            alike = len({one.source.shape for one in full}) == 1
            sources = [torch.cat([one.source for one in full])] if alike else [one.source for one in full]
            with torch.no_grad():
                logits = chain.from_iterable(self.model(source) for source in sources)
        for one in given:
            yield [Answer("", 0.0, 0.0, ())] if one is None else self._answers(one, next(logits), count)
        if wrong is not None:
            raise wrong

    def _answers(self, given: Given, logits: Tensor, count: int) -> list[Answer]:
        match self._answer:
            case spec.Vocabulary():
                return self._filled(given.source[0], logits, count)
            case spec.Classes():
                values, order = torch.log_softmax(logits, -1).topk(min(count, len(logits)))
                ranked = zip(values.tolist(), order.tolist(), strict=True)
                return [Answer(self._label(number), value, value, (number,)) for value, number in ranked]
            case spec.Labels():
                best = logits.argmax(-1).tolist()
                named = (f"{name}/{self._label(number)}" for name, number in zip(given.names, best, strict=True))
                return [Answer(" ".join(named), 0.0, 0.0, tuple(best))]
        vector = logits if logits.dim() == 1 else logits.mean(0)
        return [Answer(" ".join(f"{number:.6g}" for number in vector.tolist()), 0.0, 0.0, ())]

    def _filled(self, source: Tensor, logits: Tensor, count: int) -> list[Answer]:
        """The text with its masked places filled: the n-th answer takes the n-th best token at each."""
        assert self.tokenizer is not None
        mask = self.tokenizer.specials.mask
        places = [place for place, token in enumerate(source.tolist()) if token == mask]
        if not places:
            name = "its mask token" if mask is None else repr(self.tokenizer.tokens([mask])[0])
            raise DataError(f"the text has no place to fill in; expected {name} where a word is missing: put it there")
        values, order = torch.log_softmax(logits[places], -1).topk(count)
        answers = []
        for value, tokens in zip(values.T.tolist(), order.T.tolist(), strict=True):
            whole = source.tolist()
            for place, token in zip(places, tokens, strict=True):
                whole[place] = token
            answers.append(Answer(self.tokenizer.decode(whole), sum(value), sum(value), tuple(tokens)))
        return answers

    def _label(self, number: int) -> str:
        return self.labels[number] if number < len(self.labels) else str(number)

    def read(self, lines: Sequence[str], before: int = 0) -> list[list[int]]:
        """Nothing: each line is read when it is answered (see `Runner.read`)."""
        return []

    def unread(self, line: str) -> int:
        """None: every line is read whole (see `Runner.unread`)."""
        return 0

    def names(self, numbers: Sequence[int]) -> list[str]:
        """What to call what it answers with: its tokens, or its classes."""
        if isinstance(self._answer, spec.Vocabulary) and self.tokenizer is not None:
            return self.tokenizer.tokens(numbers)
        return [self._label(number) for number in numbers]

    def unknown(self, line: str) -> list[str]:
        """The characters of a line that the model does not know, each once."""
        return [] if self.tokenizer is None else strange_to(self.tokenizer, line)

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Looked:
        """Look at every attention that led to its own answer. Raises DataError for a line without text.

        tap: one that intervenes.
        """
        if answer is not None:
            raise DataError(f"answer={answer!r} was given; this model reads no answers: leave it out")
        if not line.strip():
            raise DataError(f"{line!r} was given to look at; expected some text or a file")
        given = self.give(line)
        trace = lens.look(self.model.eval(), given.source, tap=tap)
        assert trace.logits is not None
        own = self._answers(given, trace.logits[0], 1)[0]
        if self.task.name == "embed":  # a vector is no choice among its numbers
            trace = replace(trace, logits=None)
        return Looked(line, own, given.names, [], trace, perceived=given.perceived)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `Runner.save` does."""
        tokenizer = self.tokenizer
        prepared = None if isinstance(self.preparation, Tokenizer) else self.preparation
        card = {
            **(self.card or {}),
            "task": self.task.name,
            **config.write(_Kept(prepared, self.labels)),
            **({} if tokenizer is None else {"tokenizers": {"source": tokenizer.digest}}),
        }
        files = {} if tokenizer is None else {"source.tokenizer.json": tokenizer.save}
        folders.write(Path(folder), self.model, card, files, dtype)

    @classmethod
    def of_folder(cls, place: Path, opened: folders.Opened) -> Predictor:
        """The model of a folder with its preparation.

        Raises CheckpointError or ConfigError for a card that does not fit the model, VocabularyError for a tokenizer
        that it did not learn with.
        """
        card, where = dict(opened.card), f"{place}/card.json"
        said = config.read(_Kept, {name: card.pop(name, None) for name in ("preparation", "labels")}, where)
        prepared: Preparation | None = said.preparation
        if prepared is None:
            folders.require(place, "source.tokenizer.json")
            prepared = Tokenizer.load(place / "source.tokenizer.json")
            if {"source": prepared.digest} != card.get("tokenizers"):
                raise folders.strange_tokenizer(place)
        found = cls(opened.model, prepared, opened.task, said.labels, card=card)
        reads, answers = found._encoder.reads, found._answer
        if not isinstance(prepared, _PREPARED[type(reads)]):
            raise CheckpointError(
                f"{where}: preparation is {type(prepared).__name__}, and the model reads {type(reads).__name__}; "
                "take both files from the same run"
            )
        if isinstance(answers, spec.Classes | spec.Labels) and said.labels and len(said.labels) != answers.count:
            raise CheckpointError(
                f"{where}: labels names {len(said.labels)} classes, and the model has {answers.count}; "
                "take both files from the same run"
            )
        return found


def up_to_wrong(lines: Iterable[str], give: Callable[[str], Read]) -> tuple[list[Read | None], DataError | None]:
    """What is given of the lines before one that cannot be read, None of an empty one; and what is wrong with that."""
    given: list[Read | None] = []
    for line in lines:
        try:
            given.append(give(line) if line.strip() else None)
        except DataError as error:
            return given, error
    return given, None


def _text(line: str, tokenizer: Tokenizer) -> Given:
    first, _, second = line.partition("\t")  # two texts that belong together stand side by side
    ids = tokenizer.framed(first, second or None).ids
    return Given(torch.tensor([ids]), tokenizer.tokens(ids))


def picture(line: str, preparation: images.ImagePreparation, reads: spec.Patches) -> Given:
    """What a model reads of the image that a line names. Raises DataError for one that cannot be read."""
    image = preparation.prepare(pictures.find(line.strip()))
    rows, columns = (side // reads.size for side in image.shape[1:])
    leading = [f"<{number + 1}>" for number in range(reads.leading + reads.registers)]
    places = [f"{row + 1},{column + 1}" for row in range(rows) for column in range(columns)]
    return Given(image[None], leading + places, Picture(preparation.shown(image), rows, columns, len(leading)))


def _sound(samples: Tensor, preparation: audio.LogMel | audio.Waveform, reads: spec.Reads) -> Sound:
    """A sound, with how long what the model makes a position of is."""
    hop = preparation.hop if isinstance(preparation, audio.LogMel) else 1
    if isinstance(reads, spec.Waveform):
        hop *= math.prod(one.stride for one in reads.convolutions)
    elif isinstance(reads, spec.Frames):
        hop *= reads.each
    return Sound(samples, preparation.rate, hop / preparation.rate)


_PREPARED: dict[type[spec.Reads], type[Preparation]] = {
    spec.Tokens: Tokenizer,
    spec.Patches: images.ImagePreparation,
    spec.Frames: audio.LogMel,
    spec.Waveform: audio.Waveform,
}
"""What prepares what a model reads."""
