"""Two towers that compare images with texts: which of some texts an image goes with (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qkv import config, lens, spec
from qkv.data import images
from qkv.decoding import Decoding, Greedy
from qkv.decoding.options import Beam
from qkv.errors import CheckpointError, DataError, VocabularyError
from qkv.models.towers import Towers
from qkv.tap import NO_TAP, Tap
from qkv.tasks import folders
from qkv.tasks.kinds import TASKS, Task
from qkv.tasks.published import Given, picture, up_to_wrong
from qkv.tasks.runner import Answer, Looked, strange_to
from qkv.text import Tokenizer

_AT_ONCE = 50  # images, and texts


@dataclass(frozen=True)
class Choice:
    """One line as the model is given it: an image, and the texts to choose from."""

    image: Given
    texts: list[str]


@dataclass(frozen=True)
class _Kept:
    """The part of a card that says how images are prepared."""

    preparation: images.ImagePreparation


@dataclass(frozen=True)
class Matcher:
    """A model that says which of some texts goes with an image; a line is the path of the image, a tab, and the texts
    with tabs between.

    preparation: how an image becomes what the model reads. Raises VocabularyError for a tokenizer of another model.
    """

    model: Towers
    preparation: images.ImagePreparation
    tokenizer: Tokenizer
    task: Task = TASKS["match"]
    decoding: Decoding = Decoding(Greedy())  # its n_best counts
    card: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        reads = _stacks(self.model)[1].reads
        assert isinstance(reads, spec.Tokens)  # see of_folder; published ones read nothing else
        if self.tokenizer.size > reads.vocab:
            raise VocabularyError(
                f"the tokenizer has {self.tokenizer.size} tokens and the model {reads.vocab}; "
                "take the tokenizer from the model's own folder"
            )
        if self.tokenizer.framed("a").ids[-1:] != [self.tokenizer.specials.eos]:
            raise VocabularyError(
                "the tokenizer puts no end token after a text, and the model takes the vector of that for the text's; "
                "take the tokenizer from the model's own folder"
            )

    def give(self, line: str) -> Choice:
        """What the model reads of a line. Raises DataError for an image that cannot be read, and as `read`."""
        path, texts = _parted(line)
        for text in texts:
            self._tokens(text)
        reads = _stacks(self.model)[0].reads
        assert isinstance(reads, spec.Patches)
        return Choice(picture(path, self.preparation, reads), texts)

    def _tokens(self, text: str) -> list[int]:
        """The tokens of a text up to the first end, whose vector is the text's. Raises DataError for too many."""
        ids = self.tokenizer.framed(text).ids
        ids = ids[: ids.index(self.tokenizer.eos) + 1]
        positions = _stacks(self.model)[1].positions
        if isinstance(positions, spec.Learned) and len(ids) > positions.length:
            raise DataError(
                f"the text {text[:30]!r}... has {len(ids)} tokens; expected at most {positions.length}, which is what "
                "the model reads: shorten it"
            )
        return ids

    @torch.no_grad()
    def run(self, lines: Iterable[str], decoding: Decoding | None = None) -> Iterator[list[Answer]]:
        """Answer each line with its texts, the one that goes best with its image first, as many as n_best says.

        The score of an answer is the cosine times the model's factor; log_probability is of the softmax over all texts
        of the line; tokens is the number of the text on it, from 0. An empty line answers itself.
        Raises DataError for a line that cannot be read, when those before it are answered.
        """
        method = (decoding or self.decoding).method
        count = method.n_best if isinstance(method, Beam) else 1
        rest = iter(lines)
        known: dict[str, Tensor] = {}
        while some := list(islice(rest, _AT_ONCE)):
            given, wrong = up_to_wrong(some, self.give)
            full = [one for one in given if one is not None]
            wanted = list(dict.fromkeys(text for one in full for text in one.texts))
            new = [text for text in wanted if text not in known]
            found = dict(zip(new, self._texts(new), strict=True))
            known = {text: known[text] if text in known else found[text] for text in wanted}
            for one in given:
                if one is None:
                    yield [Answer("", 0.0, 0.0, ())]
                    continue
                vector = self.model.source(one.image.source)
                logits = self.model.compare(vector, torch.stack([known[text] for text in one.texts]))[0]
                yield _ranked(one.texts, logits, count)
            if wrong is not None:
                raise wrong

    def _texts(self, texts: Sequence[str], tap: Tap = NO_TAP) -> Iterator[Tensor]:
        """Yield the vector of each text, (width,)."""
        for begin in range(0, len(texts), _AT_ONCE):
            ids = [torch.tensor(self._tokens(text)) for text in texts[begin : begin + _AT_ONCE]]
            mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in ids], batch_first=True)
            yield from self.model.target(pad_sequence(ids, batch_first=True), source_mask=mask, tap=tap)

    def read(self, lines: Sequence[str], before: int = 0) -> list[list[int]]:
        """Nothing but a look at each line; DataError, with its number, for one without an image or a text."""
        for number, line in enumerate(lines, before + 1):
            if line.strip():
                _parted(line, f"line {number}: ")
        return []

    def unread(self, line: str) -> int:
        """None: every line is read whole (see `Runner.unread`)."""
        return 0

    def names(self, numbers: Sequence[int]) -> list[str]:
        """What to call the texts of a line: their numbers, from 1."""
        return [f"text {number + 1}" for number in numbers]

    def names_on(self, line: str) -> Callable[[Sequence[int]], list[str]]:
        """What gives the texts of a line by their numbers."""
        texts = _parted(line)[1]
        return lambda numbers: [texts[number] for number in numbers]

    def unknown(self, line: str) -> list[str]:
        """The characters of the texts that the model does not know, each once."""
        return strange_to(self.tokenizer, " ".join(line.split("\t")[1:]))

    @torch.no_grad()
    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Looked:
        """Look at every attention to the image, and to the text that goes best with it, or to the given one.

        tap: one that intervenes. Raises DataError for a line that cannot be read, and an answer that is no text of it.
        """
        given = self.give(line)
        vector = self.model.eval().source(given.image.source, tap=tap.at("source"))
        texts = [next(self._texts([text], tap.at("target"))) for text in given.texts]
        logits = self.model.compare(vector, torch.stack(texts))
        ranked = _ranked(given.texts, logits[0], len(given.texts))
        wanted = ranked[0].text if answer is None else answer if isinstance(answer, str) else answer.text
        chosen = next((one for one in ranked if one.text == wanted.strip()), None)
        if chosen is None:
            first = given.texts[0]
            raise DataError(f"answer={wanted!r} was given; expected one of the texts of the line, such as {first!r}")
        ids = self._tokens(chosen.text)
        trace = lens.look(self.model, given.image.source, ids, tap=tap)
        return Looked(
            line,
            chosen,
            given.image.names,
            self.tokenizer.tokens(ids),
            replace(trace, logits=logits),
            perceived=given.image.perceived,
        )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `Runner.save` does."""
        card = {
            **(self.card or {}),
            "task": self.task.name,
            **config.write(_Kept(self.preparation)),
            "tokenizers": {"target": self.tokenizer.digest},
        }
        folders.write(Path(folder), self.model, card, {"target.tokenizer.json": self.tokenizer.save}, dtype)

    @classmethod
    def of_folder(cls, place: Path, opened: folders.Opened) -> Matcher:
        """The model of a folder. Raises CheckpointError or ConfigError for a card that does not fit the model,
        VocabularyError for a tokenizer that it did not learn with."""
        card, where = dict(opened.card), f"{place}/card.json"
        kept = config.read(_Kept, {"preparation": card.pop("preparation", None)}, where)
        folders.require(place, "target.tokenizer.json")
        tokenizer = Tokenizer.load(place / "target.tokenizer.json")
        if {"target": tokenizer.digest} != card.get("tokenizers"):
            raise folders.strange_tokenizer(place)
        assert isinstance(opened.model, Towers)
        left, right = (stack.reads for stack in _stacks(opened.model))
        if not (isinstance(left, spec.Patches) and isinstance(right, spec.Tokens)):
            raise CheckpointError(
                f"{place} compares {type(left).__name__} with {type(right).__name__}; expected Patches with Tokens, "
                "images with texts: use it from Python"
            )
        return cls(opened.model, kept.preparation, tokenizer, opened.task, card=card)


def _stacks(model: Towers) -> tuple[spec.Stack, spec.Stack]:
    """What reads images, and what reads texts."""
    shape = model.spec
    assert isinstance(shape, spec.Towers) and shape.source.encoder is not None and shape.target.encoder is not None
    return shape.source.encoder, shape.target.encoder


def _parted(line: str, where: str = "") -> tuple[str, list[str]]:
    """The image that a line names and its texts; DataError for one that lacks either."""
    path, *texts = (part.strip() for part in line.split("\t"))
    if not path or not texts or not all(texts):
        lacks = "no image before its first tab" if not path else "an empty text" if texts else "no tab and no text"
        raise DataError(
            f"{where}{line[:60]!r} was given, which has {lacks}; expected the path of an image, a tab, and the texts "
            "to choose from with tabs between: a.png<TAB>a cat<TAB>a dog"
        )
    return path, texts


def _ranked(texts: Sequence[str], logits: Tensor, count: int) -> list[Answer]:
    """The texts by their logits (texts,), the best first."""
    chances = torch.log_softmax(logits, -1).tolist()
    values, order = logits.topk(min(count, len(logits)))
    ranked = zip(values.tolist(), order.tolist(), strict=True)
    return [Answer(texts[number], value, chances[number], (number,)) for value, number in ranked]
