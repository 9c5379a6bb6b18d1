"""Dual encoders of images and texts: which of some texts matches an image (CLIP; Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qkv import config, lens, spec
from qkv.data.images import processing
from qkv.decoding import DecodingConfig, Greedy
from qkv.decoding.config import Beam
from qkv.errors import CheckpointError, DataError, VocabularyError
from qkv.lens import Trace
from qkv.models.dual_encoder import DualEncoder
from qkv.tap import NO_TAP, Tap
from qkv.tasks import model_folder
from qkv.tasks.base import Answer, Capability, TaskModel
from qkv.tasks.encoder_model import ModelInput, parse_until_error, prepare_image
from qkv.tasks.registry import TASKS, Task
from qkv.tasks.text_generator import find_unknown_symbols
from qkv.text import Tokenizer

_BATCH_SIZE = 50  # images, and texts


@dataclass(frozen=True)
class ImageTextInput:
    """One line as the model reads it: an image, and the texts to choose from."""

    image: ModelInput
    candidates: list[str]


@dataclass(frozen=True)
class _ProcessorSettings:
    """The part of card.json that says how images are processed."""

    processor: processing.ImageProcessor


@dataclass(frozen=True, repr=False)
class ImageTextModel(TaskModel):
    """A model that chooses the text that matches an image.

    A line is the path of the image, a tab, and the texts, separated by tabs.
    processor: turns an image into the input of the model. Raises VocabularyError for a tokenizer of another model.
    """

    module: DualEncoder
    processor: processing.ImageProcessor
    tokenizer: Tokenizer
    task: Task = TASKS["zero-shot-image-classification"]
    decoding: DecodingConfig = DecodingConfig(Greedy())  # only its n_best is used
    card: model_folder.Card = model_folder.Card()

    def __post_init__(self) -> None:
        reads = _encoder_specs(self.module)[1].input
        assert isinstance(reads, spec.Tokens)  # see of_folder; published ones read nothing else
        if self.tokenizer.size > reads.vocab:
            raise VocabularyError(
                f"the tokenizer has {self.tokenizer.size} tokens and the model {reads.vocab}; "
                "take the tokenizer from the model's own folder"
            )
        if self.tokenizer.encode_with_special_tokens("a").ids[-1:] != [self.tokenizer.special_tokens.eos]:
            raise VocabularyError(
                "the tokenizer appends no end token to a text, and the model uses the vector of that token as the "
                "text's; "
                "take the tokenizer from the model's own folder"
            )

    def prepare(self, line: str) -> ImageTextInput:
        """Turn a line into the input of the model. Raises DataError for an image or a text that cannot be read."""
        path, texts = _split_line(line)
        for text in texts:
            self._tokenize(text)
        reads = _encoder_specs(self.module)[0].input
        assert isinstance(reads, spec.Patches)
        return ImageTextInput(prepare_image(path, self.processor, reads), texts)

    def _tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text up to its first end token, whose vector is the text's.

        Raises DataError for a text of more tokens than the model reads.
        """
        ids = self.tokenizer.encode_with_special_tokens(text).ids
        ids = ids[: ids.index(self.tokenizer.eos) + 1]
        positions = _encoder_specs(self.module)[1].positions
        if isinstance(positions, spec.Learned) and len(ids) > positions.length:
            raise DataError(
                f"the text {text[:30]!r}... has {len(ids)} tokens; expected at most {positions.length}, which is what "
                "the model reads: shorten it"
            )
        return ids

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Each line carries the texts to choose from."""
        return frozenset({"candidates"})

    @torch.no_grad()
    def predict_ranked(self, lines: Iterable[str], decoding: DecodingConfig | None = None) -> Iterator[list[Answer]]:
        """Answer each line with its texts, the one that goes best with its image first, as many as n_best says.

        The score of an answer is the cosine times the model's factor; log_probability is of the softmax over all texts
        of the line; tokens is the number of the text on it, from 0. An empty line answers itself.
        Raises DataError for a line that cannot be read, when those before it are answered.
        """
        method = (decoding or self.decoding).method
        count = method.n_best if isinstance(method, Beam) else 1
        rest = iter(lines)
        known: dict[str, Tensor] = {}
        while some := list(islice(rest, _BATCH_SIZE)):
            given, wrong = parse_until_error(some, self.prepare)
            full = [one for one in given if one is not None]
            texts = list(dict.fromkeys(text for one in full for text in one.candidates))
            new = [text for text in texts if text not in known]
            found = dict(zip(new, self._encode_texts(new), strict=True))
            known = {text: known[text] if text in known else found[text] for text in texts}
            for one in given:
                if one is None:
                    yield [Answer("", 0.0, 0.0, ())]
                    continue
                vector = self.module.source(one.image.source)
                logits = self.module.compute_logits(vector, torch.stack([known[text] for text in one.candidates]))[0]
                yield _rank_candidates(one.candidates, logits, count)
            if wrong is not None:
                raise wrong

    def _encode_texts(self, texts: Sequence[str], tap: Tap = NO_TAP) -> Iterator[Tensor]:
        """Yield the vector of each text, (width,)."""
        for begin in range(0, len(texts), _BATCH_SIZE):
            ids = [torch.tensor(self._tokenize(text)) for text in texts[begin : begin + _BATCH_SIZE]]
            mask = pad_sequence([torch.ones(len(one), dtype=torch.bool) for one in ids], batch_first=True)
            yield from self.module.target(pad_sequence(ids, batch_first=True), source_mask=mask, tap=tap)

    def validate_inputs(self, lines: Sequence[str], n_read: int = 0) -> list[list[int]]:
        """Check each line. Raises DataError, with its number, for one without an image or a text."""
        for number, line in enumerate(lines, n_read + 1):
            if line.strip():
                _split_line(line, f"line {number}: ")
        return []

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of the texts of a line: their numbers, from 1."""
        return [f"text {number + 1}" for number in ids]

    def candidate_names(self, line: str) -> Callable[[Sequence[int]], list[str]]:
        """Return a function that gives the texts of a line by their numbers."""
        texts = _split_line(line)[1]
        return lambda numbers: [texts[number] for number in numbers]

    def unknown_symbols(self, line: str) -> list[str]:
        """Return the characters of the texts that are not in the vocabulary, each once."""
        return find_unknown_symbols(self.tokenizer, " ".join(line.split("\t")[1:]))

    @torch.no_grad()
    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Trace:
        """Trace every attention to the image, and to the text that matches it best, or to the given one.

        tap: an edit. Raises DataError for a line that cannot be read, and for an answer that is not one of its texts.
        """
        given = self.prepare(line)
        vector = self.module.eval().source(given.image.source, tap=tap.at("source"))
        texts = [next(self._encode_texts([text], tap.at("target"))) for text in given.candidates]
        logits = self.module.compute_logits(vector, torch.stack(texts))
        ranked = _rank_candidates(given.candidates, logits[0], len(given.candidates))
        answer_text = ranked[0].text if answer is None else answer if isinstance(answer, str) else answer.text
        chosen = next((one for one in ranked if one.text == answer_text.strip()), None)
        if chosen is None:
            first = given.candidates[0]
            raise DataError(
                f"answer={answer_text!r} was given; expected one of the texts of the line, such as {first!r}"
            )
        ids = self._tokenize(chosen.text)
        trace = lens.look(self.module, given.image.source, ids, tap=tap)
        return replace(
            trace,
            logits=logits,
            text=line,
            answer=chosen,
            source_tokens=given.image.position_labels,
            target_tokens=self.tokenizer.display_tokens(ids),
            input=given.image.input,
            token_names=self.candidate_names(line),
        )

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, as `TextGenerator.save` does."""
        card = {
            **self.card.to_json(),
            "task": self.task.name,
            **config.to_dict(_ProcessorSettings(self.processor)),
            "tokenizers": {"target": self.tokenizer.digest},
        }
        model_folder.write_model_folder(
            Path(folder), self.module, card, {"target.tokenizer.json": self.tokenizer.save}, dtype
        )

    @classmethod
    def from_folder(cls, folder: Path, loaded: model_folder.LoadedFolder) -> ImageTextModel:
        """Build the model of a folder.

        Raises CheckpointError or ConfigError for a card that does not fit the model, VocabularyError for a tokenizer
        of another model.
        """
        kept = loaded.read_settings(_ProcessorSettings)
        model_folder.require_files(folder, "target.tokenizer.json")
        tokenizer = Tokenizer.load(folder / "target.tokenizer.json")
        loaded.check_tokenizers(target=tokenizer)
        assert isinstance(loaded.model, DualEncoder)
        left, right = (stack.input for stack in _encoder_specs(loaded.model))
        if not (isinstance(left, spec.Patches) and isinstance(right, spec.Tokens)):
            raise CheckpointError(
                f"{folder} compares {type(left).__name__} with {type(right).__name__}; expected Patches with Tokens, "
                "images with texts: use it from Python"
            )
        return cls(loaded.model, kept.processor, tokenizer, loaded.task, card=loaded.card)


def _encoder_specs(model: DualEncoder) -> tuple[spec.Stack, spec.Stack]:
    """Return the specs of the image encoder and of the text encoder."""
    shape = model.spec
    assert isinstance(shape, spec.DualEncoder) and shape.source.encoder is not None and shape.target.encoder is not None
    return shape.source.encoder, shape.target.encoder


def _split_line(line: str, where: str = "") -> tuple[str, list[str]]:
    """Split a line into the path of its image and its texts. Raises DataError if either is missing."""
    path, *texts = (part.strip() for part in line.split("\t"))
    if not path or not texts or not all(texts):
        lacks = "no image before its first tab" if not path else "an empty text" if texts else "no tab and no text"
        raise DataError(
            f"{where}{line[:60]!r} was given, which has {lacks}; expected the path of an image, a tab, and the texts "
            "to choose from with tabs between: a.png<TAB>a cat<TAB>a dog"
        )
    return path, texts


def _rank_candidates(texts: Sequence[str], logits: Tensor, count: int) -> list[Answer]:
    """Return the texts as answers, ranked by their logits, (texts,)."""
    chances = torch.log_softmax(logits, -1).tolist()
    values, order = logits.topk(min(count, len(logits)))
    ranked = zip(values.tolist(), order.tolist(), strict=True)
    return [Answer(texts[number], value, chances[number], (number,)) for value, number in ranked]
