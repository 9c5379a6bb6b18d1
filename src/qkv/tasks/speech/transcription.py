"""Speech recognition: transcripts from the decoder, from the encoder's CTC head, or from both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qkv.data.audio import features as audio
from qkv.data.audio.features import LogMel
from qkv.data.audio.frames import pad_frames, pad_to_window
from qkv.data.audio.sources import FeatureConfig
from qkv.decoding import Beam, DecodingConfig, Hypothesis, generate_batch, score
from qkv.decoding.ctc import ctc_greedy_decode, ctc_log_probabilities, forced_align
from qkv.errors import DataError, QkvError
from qkv.lens import Trace, timestamps
from qkv.lens.timestamps import TimedWord
from qkv.models import SequenceModel
from qkv.models.transformer import Transformer
from qkv.tap import NO_TAP, Tap

if TYPE_CHECKING:
    from qkv.tasks.text_generator import TextGenerator

_BATCH_SIZE = 16  # waveforms in a batch


@dataclass(frozen=True)
class SpeechFrontend:
    """The features of a speech recognizer, and the weight of its CTC labels in decoding.

    ctc_weight: 0, decode with the decoder only; 1, with the CTC labels only, greedily; between, score the hypotheses of
    both
    by this share of the labels' log-probability and the rest of the decoder's (Watanabe et al. 2017, eq. 10, as a
    second
    pass).
    """

    features: LogMel
    ctc_weight: float = 0.0

    def extract_features(self, samples: Tensor) -> Tensor:
        """Turn samples, (samples,) at the sample rate of the features, into frames, (1, mels, frames)."""
        return self.features(pad_to_window(samples, self.features))[None]

    @property
    def seconds_per_position(self) -> float:
        """The duration of a position of the encoder: two frames."""
        return 2 * self.features.hop_length / self.features.sample_rate


def build_log_mel(features: FeatureConfig) -> LogMel:
    """Build the log-mel spectrogram of a recipe."""
    return LogMel(**vars(features))


def load_waveform(line: str, features: LogMel) -> Tensor:
    """Load the samples, (samples,), of the file that a line names.

    `file@75` is the piece that contains second 75, of the pieces that the model reads one at a time (see
    `qkv.data.audio.features.split_at_pauses`). Raises DataError for a file that cannot be read, or that is shorter.
    """
    name = line.strip()
    offset = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)", name)
    if offset is None or Path(name).exists():
        return audio.read_audio(name, features.sample_rate)
    samples, end = audio.read_audio(offset[1], features.sample_rate), 0
    for piece in (
        audio.split_at_pauses(samples, features.sample_rate, features.seconds) if features.seconds else [samples]
    ):
        end += len(piece)
        if round(float(offset[2]) * features.sample_rate) < end:
            return piece
    seconds = f"{end / features.sample_rate:.1f} seconds"
    raise DataError(f"{offset[1]} is {seconds} long, and second {offset[2]} was requested; expected a second within it")


def transcribe(
    runner: TextGenerator,
    waveforms: Iterable[Tensor],
    decoding: DecodingConfig,
    generator: torch.Generator | None = None,
    tap: Tap = NO_TAP,
) -> Iterator[list[Hypothesis]]:
    """Yield the hypotheses for each waveform, (samples,) at the sample rate of the features, best first.

    Audio that is longer than the model's window is split (see `qkv.data.audio.features.split_at_pauses`); each part is
    transcribed separately, and the best hypotheses are concatenated.
    """
    frontend = runner.frontend
    assert frontend is not None
    # padded to one length without a mask, and one example takes enough memory
    if frontend.features.seconds is not None:
        for samples in waveforms:
            yield _merge_pieces(
                [
                    next(_decode_batch(runner, frontend.extract_features(piece), None, decoding, generator, tap))
                    for piece in audio.split_at_pauses(
                        samples, frontend.features.sample_rate, frontend.features.seconds
                    )
                ]
            )
        return
    rest = iter(waveforms)
    while some := [frontend.extract_features(samples)[0] for samples in islice(rest, _BATCH_SIZE)]:
        source, mask = pad_frames(some)
        yield from _decode_batch(runner, source, None if len(some) == 1 else mask, decoding, generator, tap)


def _merge_pieces(pieces: Sequence[list[Hypothesis]]) -> list[Hypothesis]:
    """Join the best hypotheses for the pieces of a waveform."""
    if len(pieces) == 1:
        return pieces[0]
    best = [one[0] for one in pieces]
    tokens = tuple(token for one in best for token in one.tokens)
    score, log_probability = sum(one.score for one in best), sum(one.log_probability for one in best)
    return [Hypothesis(tokens, score, log_probability, all(one.is_finished for one in best))]


@torch.no_grad()
def _decode_batch(
    runner: TextGenerator,
    source: Tensor,
    mask: Tensor | None,
    decoding: DecodingConfig,
    generator: torch.Generator | None,
    tap: Tap,
) -> Iterator[list[Hypothesis]]:
    share = runner.frontend.ctc_weight if runner.frontend is not None else 0.0
    device = next(runner.module.parameters()).device
    source, mask = source.to(device), None if mask is None else mask.to(device)
    if not share:
        yield from generate_batch(
            runner.module, source, mask, decoding=decoding, generator=generator, tap=tap, rules=runner.rules
        )
        return
    blank, end = runner.target_tokenizer.pad, runner.target_tokenizer.eos
    logits, real = compute_ctc_logits(runner.module, source, mask, tap)
    read = ctc_greedy_decode(logits, blank, real)
    found: list[list[Hypothesis]] = [[] for _ in read]
    if share < 1:
        found = generate_batch(
            runner.module,
            source,
            mask,
            decoding=_keep_all_hypotheses(decoding),
            generator=generator,
            tap=tap,
            rules=runner.rules,
        )
    tap.check_applied(positions=False)  # with CTC alone, the decoder never runs
    count = getattr(decoding.method, "n_best", 1)
    for row, hypotheses in enumerate(found):
        own = logits[row : row + 1] if real is None else logits[row : row + 1, : int(real[row].sum())]
        given = None if mask is None else mask[row : row + 1]
        frames = source[row : row + 1] if given is None else source[row : row + 1, :, : int(given.sum())]
        tokens = dict.fromkeys([*(one.tokens for one in hypotheses), (*read[row], end)])
        yield _rescore(runner, frames, own, list(tokens), share, tap)[:count]


def _rescore(
    runner: TextGenerator,
    source: Tensor,
    logits: Tensor,
    tokens: Sequence[tuple[int, ...]],
    ctc_weight: float,
    tap: Tap,
) -> list[Hypothesis]:
    """Rank transcripts of one waveform by the weighted sum of the CTC and the decoder's log-probability."""
    blank, end = runner.target_tokenizer.pad, runner.target_tokenizer.eos
    plain = [[token for token in own if token != end] for own in tokens]
    ctc_scores = ctc_log_probabilities(logits.expand(len(tokens), -1, -1), plain, blank)
    decoder_scores = [0.0] * len(tokens)
    if ctc_weight < 1:
        many = source.expand(len(tokens), -1, -1)
        decoder_scores = [sum(own) for own in score(runner.module, tokens, many, bos=runner.rules.bos, tap=tap)]
    both = [
        (1 - ctc_weight) * left + ctc_weight * right for left, right in zip(decoder_scores, ctc_scores, strict=True)
    ]
    order = sorted(range(len(tokens)), key=lambda number: -both[number])
    return [
        Hypothesis(
            tokens[one],
            both[one],
            ctc_scores[one] if ctc_weight == 1 else decoder_scores[one],
            tokens[one][-1:] == (end,),
        )
        for one in order
    ]


@torch.no_grad()
def greedy_decode(
    runner: TextGenerator, source: Tensor, mask: Tensor | None, decoding: DecodingConfig
) -> list[Sequence[int]]:
    """Return the tokens of a transcript of each waveform: by greedy CTC decoding, or by the decoder without CTC."""
    if isinstance(runner.module, Transformer) and runner.module.encoder_head is not None:
        logits, real = compute_ctc_logits(runner.module, source, mask)
        return [*ctc_greedy_decode(logits, runner.target_tokenizer.pad, real)]
    return [
        one.tokens for one, *_ in generate_batch(runner.module, source, mask, decoding=decoding, rules=runner.rules)
    ]


def compute_ctc_logits(
    model: SequenceModel, source: Tensor, mask: Tensor | None, tap: Tap = NO_TAP
) -> tuple[Tensor, Tensor | None]:
    """Return the CTC logits of the encoder, (batch, positions, labels), and which positions are not padding."""
    assert isinstance(model, Transformer)
    memory = model.encode(source, mask, tap)
    assert memory is not None
    return model.compute_encoder_logits(memory), memory.mask


def _keep_all_hypotheses(decoding: DecodingConfig) -> DecodingConfig:
    method = decoding.method
    return replace(decoding, method=replace(method, n_best=method.size)) if isinstance(method, Beam) else decoding


def word_times(
    runner: TextGenerator, source: Tensor, samples: int, tokens: Sequence[int], trace: Trace, ends: Sequence[int]
) -> tuple[TimedWord, ...]:
    """Return when each word of a transcript was spoken: by CTC alignment, or else by the cross-attention of all heads
    in the last half of the decoder's blocks.

    samples: the length of the audio. None for a transcript without words, or one that is too long for the audio.
    """
    frontend = runner.frontend
    assert frontend is not None
    rules = runner.rules
    start = 0 if rules.bos is None else 1
    word_positions = [number for number, token in enumerate(tokens) if token not in ends][len(rules.forced_prefix) :]
    plain = [tokens[number] for number in word_positions]
    if not runner.target_tokenizer.decode(plain).strip():
        return ()
    if frontend.ctc_weight:
        return ctc_word_times(runner, source, plain)
    try:
        blocks = {int(name.split(".")[1]) for name in trace.attentions if name.endswith("cross_attention")}
        heads = [
            (block, head)
            for block in sorted(blocks)[len(blocks) // 2 :]
            for head in range(trace[f"decoder.{block}.cross_attention"].calls[0]["query"].shape[1])
        ]
        first = start + word_positions[0]
        n_frames = min(source.shape[-1], max(2, samples // frontend.features.hop_length))  # silence may have been added
        times = timestamps.compute_token_times(
            trace,
            heads,
            begin=first,
            end=first + len(word_positions),
            positions=-(-n_frames // 2),
            seconds_per_position=frontend.seconds_per_position,
        )
    except QkvError:
        return ()
    return tuple(timestamps.group_words(_token_texts(runner, plain), times))


@torch.no_grad()
def ctc_word_times(runner: TextGenerator, source: Tensor, tokens: Sequence[int]) -> tuple[TimedWord, ...]:
    """Return when each word of these tokens was spoken in frames, (1, mels, frames), by CTC alignment.

    The result is empty if the tokens do not fit into the frames.
    """
    assert runner.frontend is not None
    seconds = runner.frontend.seconds_per_position
    try:
        places = forced_align(
            compute_ctc_logits(runner.module, source, None)[0][0], tokens, runner.target_tokenizer.pad
        )
    except QkvError:
        return ()
    return tuple(
        timestamps.group_words(_token_texts(runner, tokens), [(seconds * one, seconds * two) for one, two in places])
    )


def _token_texts(runner: TextGenerator, tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to the text, with the space before it if it begins a word."""
    texts = [runner.target_tokenizer.decode(tokens[:count]) for count in range(len(tokens) + 1)]
    return [after[len(before) :] for before, after in zip(texts, texts[1:], strict=False)]
