"""From a recipe and examples to a trained model: make the tokenizers, cut into tokens, train, keep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qkv import config
from qkv.data import Batch, BatchSampler, Joined, Mixture, TokenPairs, collate
from qkv.data.cleaning import prepare
from qkv.data.reading import Pair
from qkv.decoding import Decoding, Greedy
from qkv.models import SequenceModel, build
from qkv.tasks.examples import Examples, gather
from qkv.tasks.kinds import TASKS, Task
from qkv.tasks.recipe import Recipe, Words
from qkv.tasks.recipes import read_recipe
from qkv.tasks.runner import Runner
from qkv.text import Tokenizer
from qkv.text import train as train_tokenizer
from qkv.training import Result, Trainer, Validated, checkpoint, claim
from qkv.training.loss import cross_entropy
from qkv.training.progress import Display, display

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
    source, target = _tokenizers(recipe, examples, place, resume)
    show = show if show is not None else display()
    stores = []
    for pairs in examples.train:
        store, report = prepare(pairs, source, target, recipe.data.cleaning)
        show.note(str(report))
        stores.append(store)
    torch.manual_seed(recipe.training.seed)
    model = build(recipe.model.spec(source.size, target.size, shared=source == target))
    sampler = _sampler(recipe, stores)
    data = stores[0] if len(stores) == 1 else Joined(stores)

    def batch(numbers: Sequence[int]) -> Batch:
        return collate([data[number] for number in numbers], source, target, numbers)

    spread = max(1, len(examples.valid) // recipe.data.valid_examples)  # files are often sorted, so take every nth
    judge = Judge(source, target, task, recipe, examples.valid[::spread][: recipe.data.valid_examples])
    with checkpoint.replacing(place / "recipe.yaml") as part:
        part.write_text(config.dump_yaml(config.write(recipe)), encoding="utf-8")
    trainer = Trainer(model, recipe.training, sampler, batch, place, validate=judge, show=show)
    result = trainer.run(resume=resume)
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
    return Learned(runner, result)


def peak_memory() -> int | None:
    """The most memory this process ever held, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


class Judge:
    """Validates: the loss on held-out examples, the task's own score by the task's own decoding, and some samples.

    Decoding is greedy, whatever the recipe's defaults: it is asked often, and only compared with itself.
    """

    def __init__(self, source: Tokenizer, target: Tokenizer, task: Task, recipe: Recipe, pairs: list[Pair]) -> None:
        self.source, self.target, self.task, self.pairs = source, target, task, pairs
        self.decoding: Decoding = replace(recipe.decoding, method=Greedy())
        tokens, _ = prepare(pairs, source, target, recipe.data.cleaning)
        batches = BatchSampler(tokens.lengths, recipe.data.batch_tokens).batches(0)
        self.batches = [collate([tokens[n] for n in numbers], source, target, numbers) for numbers in batches]

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


def _tokenizers(recipe: Recipe, examples: Examples, place: Path, resume: bool) -> tuple[Tokenizer, Tokenizer]:
    """Make the tokenizers from the training examples, or read those of the run that goes on."""
    kept = place / "source.tokenizer.json", place / "target.tokenizer.json"
    if resume and kept[0].exists():
        source = Tokenizer.load(kept[0])
        return source, Tokenizer.load(kept[1]) if kept[1].exists() else source
    sources = (source for part in examples.train for source, _ in part)
    targets = (target for part in examples.train for _, target in part)
    if recipe.text.target is None:
        source = target = _trained([*sources, *targets], recipe.text.source)
    else:
        source, target = _trained(list(sources), recipe.text.source), _trained(list(targets), recipe.text.target)
    place.mkdir(parents=True, exist_ok=True)
    source.save(kept[0])
    if target != source:
        target.save(kept[1])
    return source, target


def _trained(lines: list[str], words: Words) -> Tokenizer:
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
