"""A model that answers in words, with everything it needs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkv import config, lens, spec
from qkv.decoding import Beam, Decoding, Greedy, Hypothesis, Sample, decode_all
from qkv.errors import ConfigError, DataError, SpecError, VocabularyError
from qkv.lens import Trace
from qkv.lens.speech import Span
from qkv.models import SequenceModel
from qkv.pretrained import Generation
from qkv.tap import NO_TAP, Tap
from qkv.tasks import folders, listening
from qkv.tasks.kinds import Task
from qkv.tasks.listening import Hearing
from qkv.tasks.wishes import Wanted, phrases_of
from qkv.text import Tokenizer

LONGEST = 4096
"""The most tokens a line may have: time and memory grow with its square, and no sentence comes near."""

_LINES_AT_ONCE = 512


@dataclass(frozen=True)
class Answer:
    """One answer to one line. score is what it was ranked by; log_probability is that of its tokens."""

    text: str
    score: float
    log_probability: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """An image that was read: its pixels (height, width, 3) uint8, seen as rows x columns patches, which come after
    `leading` positions that are no place in it."""

    pixels: Tensor
    rows: int
    columns: int
    leading: int


@dataclass(frozen=True)
class Sound:
    """A sound that was read: (samples,), `rate` of them a second; each position covers `per_token` seconds."""

    samples: Tensor
    rate: int
    per_token: float


@dataclass(frozen=True)
class Steps:
    """Steps of an agent that were read, from the step `first` on: by kind, in their order within a step, what each
    position held, (steps, numbers)."""

    numbers: dict[str, Tensor]
    first: int


@dataclass(frozen=True)
class Looked:
    """What the model saw, asked and took while it gave `answer` to `line`; the image, sound or steps, if it read any.

    begin: the position in the target of the first token that is the model's own answer, and no begin token or prompt.
    words: of a sound, when each word of the answer was said.
    """

    line: str
    answer: Answer
    source_tokens: list[str]
    target_tokens: list[str]
    trace: Trace
    copied: Sequence[str] = ()
    """In words, which tokens of the answer came out of the source; of a model that copies."""
    perceived: Picture | Sound | Steps | None = None
    begin: int = 1
    words: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Runner:
    """A model that answers in words, its tokenizers, its task and how it decodes.

    generation: what answers begin and end with; that of a model trained here unless given. hearing: what makes the
    input of a model that hears, whose lines name sound files, and how it answers.
    """

    model: SequenceModel
    source: Tokenizer
    target: Tokenizer
    task: Task
    decoding: Decoding = Decoding()
    card: dict[str, Any] | None = None
    generation: Generation | None = None
    hearing: Hearing | None = None

    def __post_init__(self) -> None:
        for name, tokenizer, size in zip(
            ("source", "target"), (self.source, self.target), vocabularies(self.model.spec), strict=True
        ):
            # a published model may have room for more tokens than its tokenizer knows
            if tokenizer.size > size or (self.generation is None and tokenizer.size != size):
                raise VocabularyError(
                    f"the {name} tokenizer has {tokenizer.size} tokens and the model {size}; "
                    "take the tokenizer from the model's own folder"
                )

    def run(
        self,
        lines: Iterable[str],
        decoding: Decoding | None = None,
        seed: int = 0,
        tap: Tap = NO_TAP,
        wanted: Wanted | None = None,
    ) -> Iterator[list[Answer]]:
        """Answer each line, best answer first; one line in, one list out, in order. An empty line answers itself.

        tap: sees and changes every step, of many lines at once: give one line where it names positions. wanted: what
        the answers are to hold and what not; one that does not keep to it (see `Wishes.missed`) is given where none was
        found that does. Raises DataError, with its number, for a line of more than LONGEST tokens, and for what is
        wanted of a model that hears; ConfigError for phrases to hold without a beam, VocabularyError for one that the
        model cannot spell.
        """
        decoding = decoding or self.decoding
        generator = torch.Generator().manual_seed(seed)
        rest, before = iter(lines), 0
        if self.hearing is not None:
            if wanted:
                raise DataError("phrases are wanted of a model that hears; expected one that reads")
            yield from self._heard(rest, self.hearing, decoding, generator, tap)
            return
        while chunk := list(islice(rest, _LINES_AT_ONCE)):
            ids, wrong = self._readable(chunk, before)
            before += len(chunk)
            full = [number for number, one in enumerate(ids) if one]
            given = [ids[number] for number in full]
            wishes = [wanted.of(chunk[number]) for number in full] if wanted else None
            found = decode_all(
                self.model,
                given if self.reads_apart else None,
                prefixes=None if self.reads_apart else given,
                phrases=None if wishes is None else phrases_of(wishes, self.target),
                decoding=decoding,
                generator=generator,
                tap=tap,
                **self.rules(),
            )
            answers = dict(zip(full, found, strict=True))
            for number, read in enumerate(ids):
                prompt = 0 if self.reads_apart else len(read)
                yield [self._answer(one, prompt) for one in answers.get(number, ())] or [Answer("", 0.0, 0.0, ())]
            if wrong is not None:
                raise wrong

    def _readable(self, lines: Sequence[str], before: int) -> tuple[list[list[int]], DataError | None]:
        """What `read` gives of the lines before one that cannot be answered, and what is wrong with that one."""
        try:
            return self.read(lines, before), None
        except DataError:
            found: list[list[int]] = []
            for number, line in enumerate(lines, before):
                try:
                    found += self.read([line], number)
                except DataError as wrong:
                    return found, wrong
            raise

    def rules(self) -> dict[str, Any]:
        """What answers begin and end with and may not hold, as keywords of `qkv.decoding.decode`."""
        if self.generation is not None:
            return self.generation.rules()
        target = self.target
        never = {target.pad, target.bos, target.unk} - {target.eos}  # one token may be several of these
        return {"bos": target.bos, "eos": target.eos, "never": tuple(sorted(never))}

    @property
    def reads_apart(self) -> bool:
        """Whether an encoder reads the line; if not, it is a prompt that the answer follows."""
        shape = self.model.spec
        return not isinstance(shape, spec.Transformer) or shape.encoder is not None

    def _heard(
        self, paths: Iterable[str], hearing: Hearing, decoding: Decoding, generator: torch.Generator, tap: Tap
    ) -> Iterator[list[Answer]]:
        wrong: list[DataError] = []

        def sounds() -> Iterator[Tensor]:
            """End at a file that cannot be read, so that those before it are answered first."""
            try:
                for path in paths:
                    yield listening.sound(path, hearing.features)
            except DataError as error:
                wrong.append(error)

        yield from self.hear(sounds(), decoding, generator, tap)
        if wrong:
            raise wrong[0]

    def hear(
        self,
        sounds: Iterable[Tensor],
        decoding: Decoding | None = None,
        generator: torch.Generator | None = None,
        tap: Tap = NO_TAP,
    ) -> Iterator[list[Answer]]:
        """Answer each sound, samples (samples,) at the rate of the features, best answer first."""
        for found in listening.hear(self, sounds, decoding or self.decoding, generator, tap):
            yield [self._answer(one, 0) for one in found]

    def _answer(self, found: Hypothesis, prompt: int) -> Answer:
        text = self.target.decode(found.tokens[prompt:])
        if (
            prompt and self.generation is None and self.task.goes_on
        ):  # a space between a prompt and what follows is of neither alone
            begun, whole = self.target.decode(found.tokens[:prompt]), self.target.decode(found.tokens)
            text = whole.removeprefix(begun) if whole.startswith(begun) else text
        return Answer(text, found.score, found.log_probability, found.tokens)

    def read(self, lines: Sequence[str], before: int = 0, longest: int = LONGEST) -> list[list[int]]:
        """The tokens of some lines as the model is given them, `before` lines coming before them; none for no text.

        Raises DataError, with its number, for a line of more than `longest` tokens.
        """
        if self.hearing is not None:
            return []
        prepared = [self.task.prepare(line) for line in lines]
        if self.generation is not None and (self.reads_apart or self.task.goes_on):
            ids = [
                one.ids if line else [] for line, one in zip(prepared, self.source.framed_all(prepared), strict=True)
            ]
        else:
            around = [self.source.eos] if self.reads_apart else [] if self.task.goes_on else [self.rules()["bos"]]
            encoded = (own[: self.longest_source] for own in self.source.encode_all(prepared))
            ids = [[*own, *around] if line else [] for line, own in zip(prepared, encoded, strict=True)]
        for number, (line, own) in enumerate(zip(lines, ids, strict=True), before + 1):
            if len(own) > longest:
                raise DataError(
                    f"line {number} ({line[:30]!r}...) has {len(own):,} tokens; expected at most {longest:,}: "
                    "cut it into sentences, one a line"
                )
        return ids

    @property
    def longest_source(self) -> int | None:
        """How many tokens of a line the model was taught to read, if lines were cut; it reads no more."""
        return (self.card or {}).get("longest_source")

    def unread(self, line: str) -> int:
        """How many tokens at the end of a line the model does not read, because it was taught with lines cut."""
        if self.longest_source is None or self.hearing is not None:
            return 0
        return max(0, len(self.source.encode(self.task.prepare(line))) - self.longest_source)

    @property
    def led_by(self) -> tuple[str, ...]:
        """What it learned to find before a source, such as <2de>; "" where also nothing stood there."""
        return tuple((self.card or {}).get("before", ()))

    def unled(self, line: str) -> bool:
        """Whether a line begins with none of what the model learned to find before a source."""
        return bool(self.led_by and line.strip()) and not line.startswith(self.led_by)

    def names(self, numbers: Sequence[int]) -> list[str]:
        """What to call the tokens it answers with."""
        return self.target.tokens(numbers)

    def unknown(self, line: str) -> list[str]:
        """The characters of a line (symbols, where tokens are words) that the model does not know, each once."""
        return [] if self.hearing else strange_to(self.source, self.task.prepare(line))

    def look(self, line: str, answer: str | Answer | None = None, tap: Tap = NO_TAP) -> Looked:
        """Answer a line (or take the given answer) and look at every attention that led to it.

        tap: one that intervenes, in answering and in what is looked at.
        Raises DataError for a line without text, VocabularyError for an answer that the model cannot give.
        """
        perceived = None
        if self.hearing is not None:
            samples = listening.sound(line, self.hearing.features)
            if (most := self.hearing.features.seconds) and len(samples) > most * self.hearing.features.rate:
                raise DataError(
                    f"{line.strip()} is {len(samples) / self.hearing.features.rate:.1f} seconds long; expected at most "
                    f"{most:g} to look at, which the model hears at once: add @ and a second, {line.strip()}@0 for the "
                    "piece at its beginning (`qkv run` answers all of it)"
                )
            source: Any = self.hearing.frames(samples)
            named, prompt = [], []
            perceived = Sound(samples, self.hearing.features.rate, self.hearing.seconds)
        else:
            [read] = self.read([line])
            if not read:
                raise DataError(f"{line!r} was given to look at; expected some text: give a word or a sentence")
            source, named = (read, self.source.tokens(read)) if self.reads_apart else (None, [])
            prompt = [] if self.reads_apart else read
        rules = self.rules()
        ends = (rules["eos"],) if isinstance(rules["eos"], int) else tuple(rules["eos"])
        if not isinstance(answer, str):
            given = next(self.run([line], tap=tap))[0] if answer is None else answer
            tokens = given.tokens
        else:
            if strange := strange_to(self.target, answer):
                raise VocabularyError(
                    f"the answer {answer!r} holds {', '.join(strange[:5])}, which this model never gives; expected "
                    f"what its answers are made of, as in {next(self.run([line]))[0].text!r}"
                )
            tokens = (*prompt, *rules.get("first", ()), *self.target.encode(answer), *ends[:1])
            given = Answer(answer, float("nan"), float("nan"), tokens)
        first = () if rules["bos"] is None else (rules["bos"],)
        whole = (*first, *tokens)
        whole = whole[:-1] if whole[-1] in ends and len(whole) > 1 else whole  # after an end nothing was asked
        trace = lens.look(self.model.eval(), source, whole, tap=tap)
        begin = max(1, len(first) + len(rules.get("first", ())) + len(prompt))
        heard = None if perceived is None else len(perceived.samples)
        words = () if heard is None else listening.spans(self, source, heard, tokens, trace, ends)
        copied = self._copied(trace)
        return Looked(line, given, named, self.target.tokens(whole), trace, copied, perceived, begin, words)

    def _copied(self, trace: Trace) -> list[str]:
        shape = self.model.spec
        if not isinstance(shape, spec.Transformer) or not isinstance(shape.answers, spec.PointerGenerator):
            return []
        every = lens.pointed(self.model, trace)
        if not every:  # an empty answer
            return []
        names = self.target.tokens([one.token for one in every])
        told = [
            f"  {name} ({one.copied:.0%} copied, from {one.source})"
            for name, one in zip(names, every, strict=True)
            if one.copied >= 0.5
        ]
        return [f"{len(told)} of {len(every)} tokens came more out of the source than out of the vocabulary:", *told]

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model folder; parameters in `dtype` if given (float16 halves the file).

        Raises StorageError if there is no room or no permission; a model that was there before then stays whole.
        """
        files = {"source.tokenizer.json": self.source.save}
        if self.target != self.source:
            files["target.tokenizer.json"] = self.target.save
        card = {
            **(self.card or {}),
            "task": self.task.name,
            "decoding": config.write(self.decoding),
            **({} if self.generation is None else {"generation": asdict(self.generation)}),
            **({} if self.hearing is None else {"hearing": config.write(self.hearing)}),
            "tokenizers": {"source": self.source.digest, "target": self.target.digest},
        }
        folders.write(Path(folder), self.model, card, files, dtype)

    @classmethod
    def of_folder(cls, place: Path, opened: folders.Opened) -> Runner:
        """The model of a folder with its tokenizers. Raises VocabularyError if they are not those it learned with."""
        card = dict(opened.card)
        folders.require(place, "source.tokenizer.json")
        source = Tokenizer.load(place / "source.tokenizer.json")
        apart = place / "target.tokenizer.json"
        target = Tokenizer.load(apart) if apart.exists() else source
        if {"source": source.digest, "target": target.digest} != card.get("tokenizers"):
            raise folders.strange_tokenizer(place)
        decoding = config.read(Decoding, card.get("decoding", {}), str(place / "card.json"))
        said = card.pop("generation", None)
        rules = None if said is None else Generation(**{name: _frozen(value) for name, value in said.items()})
        heard = card.pop("hearing", None)
        hearing = None if heard is None else config.read(Hearing, heard, str(place / "card.json"))
        return cls(opened.model, source, target, opened.task, decoding, card, rules, hearing)


def vocabularies(choice: spec.Spec) -> tuple[int, int]:
    """The sizes of the vocabularies a model reads and answers in; the same one twice if there is one."""
    if isinstance(choice, spec.Recurrent):
        return choice.source.vocab, choice.target.vocab
    stacks = () if isinstance(choice, spec.Towers) else (choice.encoder, choice.decoder)
    sizes = [stack.reads.vocab for stack in stacks if stack is not None and isinstance(stack.reads, spec.Tokens)]
    if not sizes:
        raise SpecError("a model that reads no tokens was given; expected one that does, for this task")
    return sizes[0], sizes[-1]


def with_method(decoding: Decoding, *, beam: int | None = None, n_best: int | None = None) -> Decoding:
    """The same decoding with another width (1: greedy) or another number of answers."""
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


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def strange_to(tokenizer: Tokenizer, text: str) -> list[str]:
    """The characters of a text, or the symbols where tokens are words, that are read as unknown, each once."""
    if tokenizer.specials.unk is None or tokenizer.unk not in tokenizer.encode(text):
        return []
    pieces = text.split() if len(tokenizer.encode(text)) == len(text.split()) else text
    return [piece for piece in dict.fromkeys(pieces) if tokenizer.unk in tokenizer.encode(piece)]
