"""Models that generate text: translators, language models and speech recognizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv import config, lens, spec
from qkv.data.audio.features import LogMel
from qkv.decoding import Beam, DecodingConfig, Greedy, Hypothesis, Sample, generate_all
from qkv.errors import ConfigError, DataError, SpecError, VocabularyError
from qkv.generation_rules import GenerationRules
from qkv.lens import Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks import model_folder
from qkv.tasks.base import Answer, Capability, TaskModel
from qkv.tasks.output_constraints import OutputConstraints, build_phrase_constraints
from qkv.tasks.registry import Task
from qkv.tasks.speech import transcription
from qkv.tasks.speech.transcription import SpeechFrontend
from qkv.text import Tokenizer

MAX_INPUT_TOKENS = 4096
"""The largest number of tokens in a line: time and memory grow with its square, and no sentence comes close."""

_CHUNK_SIZE = 512


@dataclass(frozen=True)
class ImageInput:
    """An image that the model read: its pixels, (height, width, 3) uint8, as rows x columns patches.

    num_prefix_tokens: how many positions, such as class tokens and registers, come before the patches.
    """

    pixels: Tensor
    rows: int
    columns: int
    num_prefix_tokens: int


@dataclass(frozen=True)
class AudioInput:
    """A waveform that the model read, (samples,), and how many seconds each position of the encoder covers."""

    samples: Tensor
    sample_rate: int
    seconds_per_position: float


@dataclass(frozen=True)
class TrajectoryInput:
    """The steps of an episode that an agent read, from `first_step` on.

    values: the numbers at each position, (steps, numbers), by kind, in the order of the kinds within a step.
    """

    values: dict[str, Tensor]
    first_step: int


@dataclass(frozen=True)
class _GeneratorSettings:
    """The part of card.json that says how the model decodes, and what a speech recognizer reads."""

    decoding: DecodingConfig = DecodingConfig()
    generation: GenerationRules | None = None
    frontend: SpeechFrontend | None = None


@dataclass(frozen=True, repr=False)
class TextGenerator(TaskModel):
    """A model that generates text, with its tokenizers, its task and its decoding.

    generation: the rules of a published model, such as the tokens that answers begin and end with; a model trained here
    has those of its tokenizer. frontend: what computes the input of a speech recognizer, whose lines name audio files.
    """

    module: SequenceModel
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    task: Task
    decoding: DecodingConfig = DecodingConfig()
    card: model_folder.Card = model_folder.Card()
    generation: GenerationRules | None = None
    frontend: SpeechFrontend | None = None

    def __post_init__(self) -> None:
        for name, tokenizer, size in zip(
            ("source", "target"),
            (self.source_tokenizer, self.target_tokenizer),
            get_vocab_sizes(self.module.spec),
            strict=True,
        ):
            # a published model may have room for more tokens than its tokenizer knows
            if tokenizer.size > size or (self.generation is None and tokenizer.size != size):
                raise VocabularyError(
                    f"the {name} tokenizer has {tokenizer.size} tokens and the model {size}; "
                    "take the tokenizer from the model's own folder"
                )

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do: generation; with audio as its input, word times; as a decoder alone, perplexity."""
        if self.frontend is not None:
            return frozenset({"generation", "audio", "word_times"})
        return frozenset({"generation"} if self.has_encoder else {"generation", "perplexity"})

    @property
    def audio_features(self) -> LogMel | None:
        """The features of the speech frontend; None for a model that reads text."""
        return None if self.frontend is None else self.frontend.features

    def predict_waveforms(
        self, waveforms: Iterable[Tensor], decoding: DecodingConfig | None = None
    ) -> Iterator[list[Answer]]:
        """Transcribe each waveform, best transcript first."""
        return self.transcribe(waveforms, decoding)

    def predict_ranked(
        self,
        lines: Iterable[str],
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        tap: Tap = NO_TAP,
        constraints: OutputConstraints | None = None,
    ) -> Iterator[list[Answer]]:
        """Yield the answers to each line, best first, in the order of the lines. An empty line has an empty answer.

        tap: observes and changes every step, for many lines at once: give a single line if it names positions. An
        edit of a place that does not exist is refused after the first step, and one of a position after the last.
        constraints: the phrases that answers must and must not contain; if no hypothesis satisfies them, the best one
        that violates them is returned (see `LineConstraints.violations`).
        Raises DataError, with its number, for a line of more than MAX_INPUT_TOKENS tokens, and for constraints on a
        speech recognizer; ConfigError for phrases to include without a beam, VocabularyError for a phrase that the
        tokenizer cannot encode.
        """
        decoding = decoding or self.decoding
        generator = torch.Generator().manual_seed(seed)
        rest, before = iter(lines), 0
        if self.frontend is not None:
            if constraints:
                raise DataError(
                    "constraints were given to a model that reads audio: leave them out, or load one of text"
                )
            yield from self._predict_audio_files(rest, self.frontend, decoding, generator, tap)
            tap.check_applied()
            return
        while chunk := list(islice(rest, _CHUNK_SIZE)):
            ids, wrong = self._validate_until_error(chunk, before)
            before += len(chunk)
            full = [number for number, one in enumerate(ids) if one]
            given = [ids[number] for number in full]
            line_constraints = [constraints.for_line(chunk[number]) for number in full] if constraints else None
            found = generate_all(
                self.module,
                given if self.has_encoder else None,
                rules=replace(
                    self.rules,
                    prefixes=None if self.has_encoder else given,
                    constraints=None
                    if line_constraints is None
                    else build_phrase_constraints(line_constraints, self.target_tokenizer),
                ),
                decoding=decoding,
                generator=generator,
                tap=tap,
            )
            answers = dict(zip(full, found, strict=True))
            for number, read in enumerate(ids):
                prompt = 0 if self.has_encoder else len(read)
                yield [self._to_answer(one, prompt) for one in answers.get(number, ())] or [Answer("", 0.0, 0.0, ())]
            if wrong is not None:
                raise wrong
        tap.check_applied()

    def _validate_until_error(self, lines: Sequence[str], n_read: int) -> tuple[list[list[int]], DataError | None]:
        """Return the token ids of the lines before the first one that cannot be answered, and its error."""
        try:
            return self.validate_inputs(lines, n_read), None
        except DataError:
            found: list[list[int]] = []
            for number, line in enumerate(lines, n_read):
                try:
                    found += self.validate_inputs([line], number)
                except DataError as wrong:
                    return found, wrong
            raise

    @property
    def rules(self) -> GenerationRules:
        """What answers must keep to: the published rules, or those of the target tokenizer."""
        if self.generation is not None:
            return self.generation
        target = self.target_tokenizer
        suppressed = {target.pad, target.bos, target.unk} - {target.eos}  # one token may be several of these
        return GenerationRules(target.bos, target.eos, tuple(sorted(suppressed)))

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads the line; without one, the line is a prompt that the answer follows."""
        shape = self.module.spec
        return not isinstance(shape, spec.Transformer) or shape.encoder is not None

    def _predict_audio_files(
        self,
        paths: Iterable[str],
        frontend: SpeechFrontend,
        decoding: DecodingConfig,
        generator: torch.Generator,
        tap: Tap,
    ) -> Iterator[list[Answer]]:
        wrong: list[DataError] = []

        def sounds() -> Iterator[Tensor]:
            """Stop at a file that cannot be read, so that those before it are answered first."""
            try:
                for path in paths:
                    yield transcription.load_waveform(path, frontend.features)
            except DataError as error:
                wrong.append(error)

        yield from self.transcribe(sounds(), decoding, generator, tap)
        if wrong:
            raise wrong[0]

    def transcribe(
        self,
        waveforms: Iterable[Tensor],
        decoding: DecodingConfig | None = None,
        generator: torch.Generator | None = None,
        tap: Tap = NO_TAP,
    ) -> Iterator[list[Answer]]:
        """Yield the transcripts of each waveform, (samples,) at the sample rate of the features, best first."""
        for found in transcription.transcribe(self, waveforms, decoding or self.decoding, generator, tap):
            yield [self._to_answer(one, 0) for one in found]

    def _to_answer(self, hypothesis: Hypothesis, prompt_length: int) -> Answer:
        text = self.target_tokenizer.decode(hypothesis.tokens[prompt_length:])
        if (
            prompt_length and self.generation is None and self.task.is_continuation
        ):  # a space between a prompt and what follows is of neither alone
            prompt_text, whole = (
                self.target_tokenizer.decode(hypothesis.tokens[:prompt_length]),
                self.target_tokenizer.decode(hypothesis.tokens),
            )
            text = whole.removeprefix(prompt_text) if whole.startswith(prompt_text) else text
        return Answer(text, hypothesis.score, hypothesis.log_probability, hypothesis.tokens)

    def validate_inputs(
        self, lines: Sequence[str], n_read: int = 0, max_tokens: int = MAX_INPUT_TOKENS
    ) -> list[list[int]]:
        """Return the token ids of some lines as the model reads them, `n_read` lines coming before; none for no text.

        Raises DataError, with its number, for a line of more than `max_tokens` tokens.
        """
        if self.frontend is not None:
            return []
        prepared = [self.task.preprocess(line) for line in lines]
        if self.generation is not None and (self.has_encoder or self.task.is_continuation):
            ids = [
                one.ids if line else []
                for line, one in zip(
                    prepared, self.source_tokenizer.encode_batch_with_special_tokens(prepared), strict=True
                )
            ]
        else:
            around = (
                [self.source_tokenizer.eos]
                if self.has_encoder
                else []
                if self.task.is_continuation
                else [self.rules.bos]
            )
            encoded = (own[: self.max_source_length] for own in self.source_tokenizer.encode_batch(prepared))
            ids = [[*own, *around] if line else [] for line, own in zip(prepared, encoded, strict=True)]
        for number, (line, own) in enumerate(zip(lines, ids, strict=True), n_read + 1):
            if len(own) > max_tokens:
                raise DataError(
                    f"line {number} ({line[:30]!r}...) has {len(own):,} tokens; expected at most {max_tokens:,}: "
                    "cut it into sentences, one a line"
                )
        return ids

    @property
    def max_source_length(self) -> int | None:
        """How many tokens of a line the model reads, if the training sources were truncated; otherwise None."""
        return self.card.max_source_length

    def n_truncated(self, line: str) -> int:
        """Return how many tokens at the end of a line are truncated, as those of the training sources were."""
        if self.max_source_length is None or self.frontend is not None:
            return 0
        return max(0, len(self.source_tokenizer.encode(self.task.preprocess(line))) - self.max_source_length)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the training sources began with, such as <2de>; "" if some began with nothing special."""
        return self.card.prefixes

    def missing_prefix(self, line: str) -> bool:
        """Return whether a line begins with none of the prefixes of the training sources."""
        return bool(self.prefixes and line.strip()) and not line.startswith(self.prefixes)

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of the tokens of an answer."""
        return self.target_tokenizer.display_tokens(ids)

    def unknown_symbols(self, line: str) -> list[str]:
        """Return the characters of a line (words, if tokens are words) that are not in the vocabulary, each once."""
        return [] if self.frontend else find_unknown_symbols(self.source_tokenizer, self.task.preprocess(line))

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Trace:
        """Answer a line (or take the given answer) and return a trace of every attention that led to it.

        tap: intervenes, both while the model answers and in the trace.
        Raises DataError for a line without text, VocabularyError for an answer that the model cannot give.
        """
        audio_input = None
        if self.frontend is not None:
            samples = transcription.load_waveform(line, self.frontend.features)
            if (most := self.frontend.features.seconds) and len(samples) > most * self.frontend.features.sample_rate:
                raise DataError(
                    f"{line.strip()} is {len(samples) / self.frontend.features.sample_rate:.1f} seconds long; "
                    f"expected at most "
                    f"{most:g} to look at, which the model processes at once: add @ and a second, {line.strip()}@0 "
                    f"for the "
                    "piece at its beginning (`qkv run` answers all of it)"
                )
            source: Any = self.frontend.extract_features(samples)
            named, prompt = [], []
            audio_input = AudioInput(samples, self.frontend.features.sample_rate, self.frontend.seconds_per_position)
        else:
            [read] = self.validate_inputs([line])
            if not read:
                raise DataError(f"{line!r} was given to look at; expected some text: give a word or a sentence")
            source, named = (read, self.source_tokenizer.display_tokens(read)) if self.has_encoder else (None, [])
            prompt = [] if self.has_encoder else read
        rules, ends = self.rules, self.rules.eos_tokens
        if not isinstance(answer, str):
            given = next(self.predict_ranked([line], tap=tap))[0] if answer is None else answer
            tokens = given.tokens
        else:
            if strange := find_unknown_symbols(self.target_tokenizer, answer):
                raise VocabularyError(
                    f"the answer {answer!r} holds {', '.join(strange[:5])}, which this model never gives; expected "
                    f"what its answers are made of, as in {next(self.predict_ranked([line]))[0].text!r}"
                )
            tokens = (*prompt, *rules.forced_prefix, *self.target_tokenizer.encode(answer), *ends[:1])
            given = Answer(answer, float("nan"), float("nan"), tokens)
        first = () if rules.bos is None else (rules.bos,)
        whole = (*first, *tokens)
        whole = whole[:-1] if whole[-1] in ends and len(whole) > 1 else whole  # after an end nothing was asked
        trace = lens.look(self.module.eval(), source, whole, tap=tap)
        begin = max(1, len(first) + len(rules.forced_prefix) + len(prompt))
        n_samples = None if audio_input is None else len(audio_input.samples)
        words = () if n_samples is None else transcription.word_times(self, source, n_samples, tokens, trace, ends)
        copied = self._describe_copying(trace)
        return replace(
            trace,
            text=line,
            answer=given,
            source_tokens=named,
            target_tokens=self.target_tokenizer.display_tokens(whole),
            input=audio_input,
            answer_start=begin,
            word_times=words,
            copy_report=copied,
            token_names=self.token_names,
        )

    def _describe_copying(self, trace: Trace) -> list[str]:
        shape = self.module.spec
        if not isinstance(shape, spec.Transformer) or not isinstance(shape.head, spec.PointerGenerator):
            return []
        every = lens.attribute_copies(self.module, trace)
        if not every:  # an empty answer
            return []
        names = self.target_tokenizer.display_tokens([one.token for one in every])
        descriptions = [
            f"  {name} ({one.copied_share:.0%} copied, from {one.source_position})"
            for name, one in zip(names, every, strict=True)
            if one.copied_share >= 0.5
        ]
        return [
            f"{len(descriptions)} of {len(every)} tokens came more out of the source than out of the vocabulary:",
            *descriptions,
        ]

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder, with parameters in `dtype` if given (float16 halves the file).

        Raises StorageError if there is no space or no permission; a model that was there before then stays complete.
        """
        files = {"source.tokenizer.json": self.source_tokenizer.save}
        if self.target_tokenizer is not self.source_tokenizer:  # two of equal contents stay two
            files["target.tokenizer.json"] = self.target_tokenizer.save
        card = {
            **self.card.to_json(),
            "task": self.task.name,
            "decoding": config.to_dict(self.decoding),
            **({} if self.generation is None else {"generation": self.generation.to_json()}),
            **({} if self.frontend is None else {"frontend": config.to_dict(self.frontend)}),
            "tokenizers": {"source": self.source_tokenizer.digest, "target": self.target_tokenizer.digest},
        }
        model_folder.write_model_folder(Path(folder), self.module, card, files, dtype)

    @classmethod
    def from_folder(cls, folder: Path, loaded: model_folder.LoadedFolder) -> TextGenerator:
        """Build the model of a folder with its tokenizers.

        Raises ConfigError for a card that cannot be read, VocabularyError for tokenizers of another model.
        """
        settings = loaded.read_settings(_GeneratorSettings)
        model_folder.require_files(folder, "source.tokenizer.json")
        source = Tokenizer.load(folder / "source.tokenizer.json")
        apart = folder / "target.tokenizer.json"
        target = Tokenizer.load(apart) if apart.exists() else source
        loaded.check_tokenizers(source=source, target=target)
        return cls(
            loaded.model,
            source,
            target,
            loaded.task,
            settings.decoding,
            loaded.card,
            settings.generation,
            settings.frontend,
        )


def get_vocab_sizes(model_spec: spec.Spec) -> tuple[int, int]:
    """Return the sizes of the source and target vocabularies; the same size twice if they are shared."""
    if isinstance(model_spec, spec.Recurrent):
        return model_spec.source.vocab, model_spec.target.vocab
    stacks = () if isinstance(model_spec, spec.DualEncoder) else (model_spec.encoder, model_spec.decoder)
    sizes = [stack.input.vocab for stack in stacks if stack is not None and isinstance(stack.input, spec.Tokens)]
    if not sizes:
        raise SpecError("a model that reads no tokens was given; this task expects a model of text")
    return sizes[0], sizes[-1]


def override_method(decoding: DecodingConfig, *, beam: int | None = None, n_best: int | None = None) -> DecodingConfig:
    """Return the decoding with another beam size (1: greedy) or another number of answers."""
    method = decoding.method
    if beam == 1 and (n_best or 1) == 1:
        return replace(decoding, method=Greedy())
    if beam is not None or (n_best is not None and isinstance(method, Greedy)):
        old = method if isinstance(method, Beam) else Beam()
        method = replace(old, size=beam or max(old.size, n_best or 1), n_best=min(old.n_best, beam or old.size))
    if n_best is not None:
        if isinstance(method, Beam):
            method = replace(method, size=max(method.size, n_best), n_best=n_best)
        elif isinstance(method, Sample):
            method = replace(method, n_best=n_best)
        else:
            raise ConfigError([f"n_best={n_best}: greedy decoding has one answer; use a beam"])
    return replace(decoding, method=method)


def find_unknown_symbols(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the characters of a text (words, if tokens are words) that are encoded as unknown, each once."""
    if tokenizer.special_tokens.unk is None or tokenizer.unk not in tokenizer.encode(text):
        return []
    pieces = text.split() if len(tokenizer.encode(text)) == len(text.split()) else text
    return [piece for piece in dict.fromkeys(pieces) if tokenizer.unk in tokenizer.encode(piece)]
