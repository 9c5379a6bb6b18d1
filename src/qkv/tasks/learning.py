"""From a recipe and examples to a trained model: make the tokenizers, cut into tokens, train, keep."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from qkv import config
from qkv.data import Batch, BatchSampler, Joined, Mixture, TokenPairs, collate
from qkv.data.cleaning import prepare
from qkv.data.reading import Pair
from qkv.decoding import Decoding, Greedy
from qkv.errors import ConfigError, DataError, QkvError, StorageError, TrainingError, VocabularyError
from qkv.models import SequenceModel, build
from qkv.tasks.examples import Examples, gather, name_of
from qkv.tasks.kinds import TASKS, Task
from qkv.tasks.loading import load
from qkv.tasks.recipe import From, Recipe, Words
from qkv.tasks.recipes import read_recipe
from qkv.tasks.runner import LONGEST, Runner, strange_to
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer
from qkv.training import Result, Trainer, Validated, checkpoint, claim
from qkv.training.loss import cross_entropy
from qkv.training.progress import Display, display

_RECIPE = "recipe.yaml"
_TOKENS = "tokens"  # the training data as numbers, while the run lasts
_SAMPLES = 4


@dataclass(frozen=True)
class Learned:
    """A finished run: the model that answers, and how it went."""

    runner: Runner
    result: Result


def learn(
    recipe: Recipe, examples: Examples, folder: str | Path, *, resume: bool = False, show: Display | None = None
) -> Learned:
    """Train as the recipe says on the given examples; leave a model folder that `load` opens.

    The same recipe, examples and machine give the same bytes, in one run or in several with `resume`.
    """
    place, task = Path(folder), TASKS[recipe.task]
    claim(place, resume)
    _same_run(recipe, place)
    source, target, model = _beginning(recipe, examples, place, resume)
    show = show if show is not None else display()
    stores = []
    for pairs in examples.train:
        store, report = prepare(pairs, source, target, recipe.data.cleaning, place / _TOKENS)
        show.note(str(report))
        stores.append(store)
    if isinstance(recipe.model, From):
        _check_known(recipe, examples, stores, Runner(model, source, target, task))
    sampler = _sampler(recipe, stores)
    data = stores[0] if len(stores) == 1 else Joined(stores)

    def batch(numbers: Sequence[int]) -> Batch:
        return collate([data[number] for number in numbers], source, target, numbers)

    judge = Judge(source, target, task, recipe, _spread(examples.valid, recipe.data.valid_examples))
    judge.check(recipe)
    if judge.report.dropped_count or judge.report.truncated.count:
        show.note(f"{name_of(recipe.data.valid)}: {judge.report}")
    with checkpoint.replacing(place / _RECIPE) as part:
        part.write_text(config.dump_yaml(config.write(recipe)), encoding="utf-8")
    trainer = Trainer(model, recipe.training, sampler, batch, place, validate=judge, show=show)
    try:
        result = trainer.run(resume=resume)
    except QkvError:
        shutil.rmtree(place / _TOKENS, ignore_errors=True)
        raise
    card = {
        "scores": {f"valid {name}": value for name, value in result.metrics.items()},
        "training": {
            "steps": result.step,
            "minutes": round(result.seconds / 60, 1),
            "weights": result.weights,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "peak memory in MB": peak_memory(),
        },
    }
    runner = Runner(model.eval(), source, target, task, recipe.decoding, card)
    runner.save(place)
    if result.stopped != "interrupted":
        shutil.rmtree(place / _TOKENS, ignore_errors=True)
    return Learned(runner, result)


def peak_memory() -> int | None:
    """The most memory this process ever held, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    """Every nth source, for files are often sorted; with all its pairs, for each is a right answer."""
    sources = list(dict.fromkeys(source for source, _ in pairs))
    chosen = set(sources[:: max(1, len(sources) // count)][:count])
    return [pair for pair in pairs if pair[0] in chosen]


class Judge:
    """Validates: the loss on held-out examples, the task's own score by the task's own decoding, and some samples.

    Decoding is greedy, whatever the recipe's defaults: it is asked often, and only compared with itself.
    """

    def __init__(self, source: Tokenizer, target: Tokenizer, task: Task, recipe: Recipe, pairs: list[Pair]) -> None:
        self.source, self.target, self.task, self.pairs = source, target, task, pairs
        self.decoding: Decoding = replace(recipe.decoding, method=Greedy())
        tokens, self.report = prepare(pairs, source, target, recipe.data.cleaning)
        batches = BatchSampler(tokens.lengths, recipe.data.batch_tokens).batches(0)
        self.batches = [collate([tokens[n] for n in numbers], source, target, numbers) for numbers in batches]

    def check(self, recipe: Recipe) -> None:
        """Find before training what would stop it at the first validation: DataError, ConfigError, MissingExtraError.

        A line that cannot be decoded, a metric that is not there or is judged upside down, a scoring library that is
        not installed: nothing would have been saved by then.
        """
        questions = self.task.questions(self.pairs)
        for number, tokens in enumerate(self.source.encode_all(self.task.prepare(one) for one, _ in questions), 1):
            if len(tokens) > LONGEST:
                raise DataError(
                    f"{name_of(recipe.data.valid)}, question {number} ({questions[number - 1][0][:30]!r}...) has "
                    f"{len(tokens):,} tokens; expected at most {LONGEST:,} to validate on: cut it or take it out"
                )
        given = recipe.training.validation
        scores = self.task.score([own[0] for _, own in questions], [own for _, own in questions])
        names = ["loss", *scores]
        if given.metric not in names:
            raise ConfigError(
                [f"training.validation.metric: given {given.metric!r}, expected one of {', '.join(names)}"]
            )
        better = "lower" if given.metric == "loss" else self.task.better
        if given.better != better:
            raise ConfigError(
                [
                    f"training.validation.better: given {given.better!r}, but {given.metric} is better when "
                    f"{better}; set it to {better}"
                ]
            )

    @torch.no_grad()
    def __call__(self, model: SequenceModel) -> Validated:
        device = next(model.parameters()).device
        total = count = 0.0
        for batch in self.batches:
            batch = batch.to(device)
            logits = model(batch.source, batch.target, batch.source_mask)
            total += float(cross_entropy(logits, batch.labels))
            count += batch.target_tokens
        questions = self.task.questions(self.pairs)
        runner = Runner(model, self.source, self.target, self.task, self.decoding)
        answers = [one[0].text for one in runner.run(source for source, _ in questions)]
        scores = self.task.score(answers, [references for _, references in questions])
        samples = [
            f"{source}  ->  {answer}   ({references[0]})"
            for (source, references), answer in zip(questions[:_SAMPLES], answers, strict=False)
        ]
        return Validated({"loss": total / count, **{name: one.value for name, one in scores.items()}}, samples)


_MAY_CHANGE = (
    *(f"training.{name}" for name in ("steps", "epochs", "minutes", "validation", "saving")),
    *("decoding", "data.valid", "data.test"),
)
"""What the recipe of a resumed run may have otherwise: when it ends, what is judged and kept, how it answers."""


def _same_run(recipe: Recipe, place: Path) -> None:
    """Raise TrainingError if the folder's run was begun by another recipe, or holds a model that would be lost."""
    begun = (place / _RECIPE).is_file() and (place / "checkpoint.safetensors").is_file()
    if not begun:
        if (place / "model.safetensors").exists():
            raise TrainingError(
                f"{place} already holds a model, and no run to resume. Choose another folder (--folder)."
            )
        return
    before, now = _flat(config.load_yaml(place / _RECIPE)), _flat(config.write(recipe))
    changed = [
        f"{name}={value} (given: {now[name]})"
        for name, value in before.items()
        if name in now and value != now[name] and not name.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise TrainingError(
            f"The run in {place} was begun with {', '.join(changed)}. Expected the recipe it began with: change that "
            "back, or begin a new run in another folder (--folder)."
        )


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Options by their dotted paths; lists as they are."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def _beginning(
    recipe: Recipe, examples: Examples, place: Path, resume: bool
) -> tuple[Tokenizer, Tokenizer, SequenceModel]:
    """The tokenizers, and the model before its first step: new ones, or those of the model to go on from."""
    if isinstance(recipe.model, From):
        trained = load(recipe.model.folder)
        if not isinstance(trained, Runner) or trained.generation is not None:
            raise ConfigError(
                [f"model.folder={recipe.model.folder}: a published checkpoint; expected a model that was trained here"]
            )
        return trained.source, trained.target, trained.model
    source, target = _tokenizers(recipe, examples, place, resume)
    torch.manual_seed(recipe.training.seed)
    return source, target, build(recipe.model.spec(source.size, target.size, shared=source == target))


def _check_known(recipe: Recipe, examples: Examples, stores: Sequence[TokenPairs], runner: Runner) -> None:
    """Raise VocabularyError if more examples than may be dropped hold what the model's tokenizers do not know."""
    total, unknown = sum(map(len, stores)), sum(store.holding(runner.source.unk) for store in stores)
    if unknown <= recipe.data.cleaning.allow_dropped * total:
        return
    tokenizers = (runner.source, runner.target)
    found = (
        f"{text[:60]!r} with {', '.join(map(repr, strange[:3]))}"
        for pair in chain.from_iterable(examples.train)
        for text, tokenizer in zip(pair, tokenizers, strict=True)
        if (strange := strange_to(tokenizer, text))
    )
    raise VocabularyError(
        f"{unknown:,} of {total:,} examples hold what the model to go on from has no token for, such as {next(found)}; "
        f"expected at most {recipe.data.cleaning.allow_dropped:.1%}: give it text of the kind it knows, allow more "
        "(data.cleaning.allow_dropped), or train a new model"
    )


def _tokenizers(recipe: Recipe, examples: Examples, place: Path, resume: bool) -> tuple[Tokenizer, Tokenizer]:
    """Make the tokenizers from the training examples, or read those of the run that goes on."""
    kept = place / "source.tokenizer.json", place / "target.tokenizer.json"
    if resume and kept[0].exists():
        source = Tokenizer.load(kept[0])
        return source, Tokenizer.load(kept[1]) if kept[1].exists() else source
    sources = (source for part in examples.train for source, _ in part)
    targets = (target for part in examples.train for _, target in part)
    if recipe.text.target is None:
        source = target = _trained(chain(sources, targets), recipe.text.source)
    else:
        source, target = _trained(sources, recipe.text.source), _trained(targets, recipe.text.target)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{place} could not be made: {error}; choose a folder that can be written") from error
    source.save(kept[0])
    if target != source:
        target.save(kept[1])
    return source, target


def _trained(lines: Iterable[str], words: Words) -> Tokenizer:
    return train_tokenizer(lines, words.kind, words.vocab, words.lowercase)


def _sampler(recipe: Recipe, stores: list[TokenPairs]) -> BatchSampler:
    budget, seed = recipe.data.batch_tokens, recipe.training.seed
    if len(stores) == 1:
        return BatchSampler(stores[0].lengths, budget, seed)
    return Mixture(
        [store.lengths for store in stores], recipe.data.weights or [len(store) for store in stores], budget, seed
    )


def train(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    folder: str | Path = "run",
    *,
    resume: bool = False,
    show: Display | None = None,
) -> Learned:
    """Read a recipe (a name, a path or the tree itself), gather its data and train; see `learn`."""
    tree = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, overrides)
    show = show if show is not None else display()
    examples = gather(tree.data, TASKS[tree.task])
    for note in examples.notes:
        show.note(note)
    return learn(tree, examples, folder, resume=resume, show=show)
