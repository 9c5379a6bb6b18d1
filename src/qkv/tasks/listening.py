"""How a model that hears answers: by its decoder, by its encoder's own labels, or by both together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qkv.data import audio
from qkv.data.audio import LogMel
from qkv.data.frames import at_least, side_by_side
from qkv.data.hearing import Features
from qkv.decoding import Beam, Decoding, Hypothesis, decode, score
from qkv.decoding.ctc import align, log_probabilities, read_labels
from qkv.errors import DataError, QkvError
from qkv.lens import Trace, speech
from qkv.lens.speech import Span
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer
from qkv.tap import NO_TAP, Tap

if TYPE_CHECKING:
    from qkv.tasks.runner import Runner

_AT_ONCE = 16  # sounds that are answered together


@dataclass(frozen=True)
class Hearing:
    """What makes the input of a model that hears, and how much its encoder's own labels count in its answers.

    ctc: 0, the decoder answers alone; 1, the labels alone, the best at each position; between, the hypotheses of both
    are ranked by that share of the labels' log-probability and the rest of the decoder's (Watanabe et al. 2017, eq. 10,
    as a second pass).
    """

    features: LogMel
    ctc: float = 0.0

    def frames(self, samples: Tensor) -> Tensor:
        """Samples (samples,) at the features' rate -> (1, mels, frames)."""
        return self.features(at_least(samples, self.features))[None]

    @property
    def seconds(self) -> float:
        """How long a position of the encoder is: two frames."""
        return 2 * self.features.hop / self.features.rate


def log_mel(features: Features) -> LogMel:
    """What makes the frames."""
    return LogMel(**vars(features))


def sound(line: str, features: LogMel) -> Tensor:
    """The samples (samples,) of the file that a line names; of `file@75` the piece that is heard at once and holds
    second 75 (see `qkv.data.audio.pieces`). Raises DataError for a file that cannot be read, or ends before.
    """
    name = line.strip()
    said = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)", name)
    if said is None or Path(name).exists():
        return audio.read(name, features.rate)
    samples, end = audio.read(said[1], features.rate), 0
    for piece in audio.pieces(samples, features.rate, features.seconds) if features.seconds else [samples]:
        end += len(piece)
        if round(float(said[2]) * features.rate) < end:
            return piece
    seconds = f"{end / features.rate:.1f} seconds"
    raise DataError(f"{said[1]} is {seconds} long, and second {said[2]} was asked for; expected one within it")


def hear(
    runner: Runner,
    sounds: Iterable[Tensor],
    decoding: Decoding,
    generator: torch.Generator | None = None,
    tap: Tap = NO_TAP,
) -> Iterator[list[Hypothesis]]:
    """The hypotheses for each sound (samples,) at the features' rate, best first.

    Of a sound that is longer than the model hears at once, each piece (see `qkv.data.audio.pieces`) is answered by
    itself, and the best answers are put together to one.
    """
    hearing = runner.hearing
    assert hearing is not None
    if hearing.features.seconds is not None:  # silence is added up to one length: no mask, and one takes memory enough
        for samples in sounds:
            yield _joined(
                [
                    next(_together(runner, hearing.frames(piece), None, decoding, generator, tap))
                    for piece in audio.pieces(samples, hearing.features.rate, hearing.features.seconds)
                ]
            )
        return
    rest = iter(sounds)
    while some := [hearing.frames(samples)[0] for samples in islice(rest, _AT_ONCE)]:
        source, mask = side_by_side(some)
        yield from _together(runner, source, None if len(some) == 1 else mask, decoding, generator, tap)


def _joined(found: Sequence[list[Hypothesis]]) -> list[Hypothesis]:
    """The hypotheses for a sound, given those for its pieces."""
    if len(found) == 1:
        return found[0]
    best = [one[0] for one in found]
    tokens = tuple(token for one in best for token in one.tokens)
    score, log_probability = sum(one.score for one in best), sum(one.log_probability for one in best)
    return [Hypothesis(tokens, score, log_probability, all(one.ended for one in best))]


@torch.no_grad()
def _together(
    runner: Runner,
    source: Tensor,
    mask: Tensor | None,
    decoding: Decoding,
    generator: torch.Generator | None,
    tap: Tap,
) -> Iterator[list[Hypothesis]]:
    share = runner.hearing.ctc if runner.hearing is not None else 0.0
    device = next(runner.model.parameters()).device
    source, mask = source.to(device), None if mask is None else mask.to(device)
    if not share:
        yield from decode(runner.model, source, mask, decoding=decoding, generator=generator, tap=tap, **runner.rules())
        return
    blank, end = runner.target.pad, runner.target.eos
    logits, real = labels_of(runner.model, source, mask, tap)
    read = read_labels(logits, blank, real)
    found: list[list[Hypothesis]] = [[] for _ in read]
    if share < 1:
        found = decode(
            runner.model, source, mask, decoding=_all_kept(decoding), generator=generator, tap=tap, **runner.rules()
        )
    count = getattr(decoding.method, "n_best", 1)
    for row, hypotheses in enumerate(found):
        own = logits[row : row + 1] if real is None else logits[row : row + 1, : int(real[row].sum())]
        given = None if mask is None else mask[row : row + 1]
        frames = source[row : row + 1] if given is None else source[row : row + 1, :, : int(given.sum())]
        tokens = dict.fromkeys([*(one.tokens for one in hypotheses), (*read[row], end)])
        yield _ranked(runner, frames, own, list(tokens), share, tap)[:count]


def _ranked(
    runner: Runner, source: Tensor, logits: Tensor, tokens: Sequence[tuple[int, ...]], share: float, tap: Tap
) -> list[Hypothesis]:
    """Answers to one sound in the order of both their log-probabilities together."""
    blank, end = runner.target.pad, runner.target.eos
    plain = [[token for token in own if token != end] for own in tokens]
    heard = log_probabilities(logits.expand(len(tokens), -1, -1), plain, blank)
    written = [0.0] * len(tokens)
    if share < 1:
        many = source.expand(len(tokens), -1, -1)
        written = [sum(own) for own in score(runner.model, tokens, many, bos=runner.rules()["bos"], tap=tap)]
    both = [(1 - share) * left + share * right for left, right in zip(written, heard, strict=True)]
    order = sorted(range(len(tokens)), key=lambda number: -both[number])
    return [
        Hypothesis(tokens[one], both[one], heard[one] if share == 1 else written[one], tokens[one][-1:] == (end,))
        for one in order
    ]


@torch.no_grad()
def quickly(runner: Runner, source: Tensor, mask: Tensor | None, decoding: Decoding) -> list[Sequence[int]]:
    """The tokens of an answer to each sound: the best label of each position, or without labels what is decoded."""
    if isinstance(runner.model, Transformer) and runner.model.encoder_answer is not None:
        logits, real = labels_of(runner.model, source, mask)
        return [*read_labels(logits, runner.target.pad, real)]
    return [one.tokens for one, *_ in decode(runner.model, source, mask, decoding=decoding, **runner.rules())]


def labels_of(
    model: SequenceModel, source: Tensor, mask: Tensor | None, tap: Tap = NO_TAP
) -> tuple[Tensor, Tensor | None]:
    """What the encoder answers by itself, logits (batch, positions, labels), and which positions are real."""
    assert isinstance(model, Transformer)
    memory = model.encode(source, mask, tap)
    assert memory is not None
    return model.label(memory), memory.mask


def _all_kept(decoding: Decoding) -> Decoding:
    method = decoding.method
    return replace(decoding, method=replace(method, n_best=method.size)) if isinstance(method, Beam) else decoding


def spans(
    runner: Runner, source: Tensor, samples: int, tokens: Sequence[int], trace: Trace, ends: Sequence[int]
) -> tuple[Span, ...]:
    """When each word of an answer was said: where the encoder's own labels stand, or else by the cross-attention of all
    heads in the last half of the decoder's blocks.

    samples: how many the sound has. None for an answer without words, or one that has no room in the sound.
    """
    hearing = runner.hearing
    assert hearing is not None
    rules = runner.rules()
    begun = 0 if rules["bos"] is None else 1
    said = [number for number, token in enumerate(tokens) if token not in ends][len(rules.get("first", ())) :]
    plain = [tokens[number] for number in said]
    if not runner.target.decode(plain).strip():
        return ()
    if hearing.ctc:
        return labelled(runner, source, plain)
    try:
        blocks = {int(name.split(".")[1]) for name in trace.attentions if name.endswith("cross_attention")}
        heads = [
            (block, head)
            for block in sorted(blocks)[len(blocks) // 2 :]
            for head in range(trace[f"decoder.{block}.cross_attention"].calls[0]["query"].shape[1])
        ]
        first = begun + said[0]
        heard = min(source.shape[-1], max(2, samples // hearing.features.hop))  # silence may have been added
        times = speech.token_times(
            trace, heads, begin=first, end=first + len(said), positions=-(-heard // 2), seconds=hearing.seconds
        )
    except QkvError:
        return ()
    return tuple(speech.words(_pieces(runner, plain), times))


@torch.no_grad()
def labelled(runner: Runner, source: Tensor, tokens: Sequence[int]) -> tuple[Span, ...]:
    """When each word of these tokens was said in a sound, frames (1, mels, frames): where the encoder's labels stand.

    None for tokens that have no room in it.
    """
    assert runner.hearing is not None
    seconds = runner.hearing.seconds
    try:
        places = align(labels_of(runner.model, source, None)[0][0], tokens, runner.target.pad)
    except QkvError:
        return ()
    return tuple(speech.words(_pieces(runner, tokens), [(seconds * one, seconds * two) for one, two in places]))


def _pieces(runner: Runner, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text, with the space before it where it begins a word."""
    texts = [runner.target.decode(tokens[:count]) for count in range(len(tokens) + 1)]
    return [after[len(before) :] for before, after in zip(texts, texts[1:], strict=False)]
