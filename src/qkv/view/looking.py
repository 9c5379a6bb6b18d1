"""From a model that answers and a line to what the page shows: the look, the beam, and why it answered so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qkv import comparing, lens, spec
from qkv.decoding import Beam
from qkv.lens import Why
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks.loading import Opened
from qkv.tasks.matching import Matcher
from qkv.tasks.runner import LONGEST, Looked, Picture, Runner, Sound, Steps
from qkv.view import axes, editing
from qkv.view.axes import Axis
from qkv.view.run import Edit, Hypothesis, Run

LONGEST_READ = 2**17
"""The most tokens of a text that a language model is looked at while it reads it."""

_WORK = 5e10
"""How many multiplications the reasons of a page may take, roughly: a few seconds."""

_PASSES = 100  # of the decoder, that the reasons of a page may take

_STEP = 512  # tokens of a long text that are read at once
_LIKELIEST = 200  # last positions of a long text whose likeliest answers are told

_READING = """from qkv import tasks, view

runner = tasks.load({name!r})
run = view.seen(runner, text)  # the text that was read
view.page(run, "look.html")"""


def seen(runner: Opened, line: str, answer: str | None = None, *, name: str = "", edits: Sequence[Edit] = ()) -> Run:
    """Answer a line (or take the given answer), look at what led to it, and say why.

    name: what the model is opened by, e.g. "pronounce". edits: changes of the run, as in `qkv.view.editing`.
    Raises QkvError for edits that there is nothing for, and as `look` of the runner does.
    """
    if answer is None and not edits and (ids := long_text(runner, line)) is not None:
        assert isinstance(runner, Runner)
        return _read(runner, line, ids, name)
    base = runner.look(line, answer)
    tap = editing.tap(edits, base.trace) if edits else NO_TAP
    looked = runner.look(line, answer, tap=tap) if edits else base
    said = looked.answer.text
    if runner.task.name == "embed":
        numbers = said.split()
        said = f"a vector of {len(numbers):,} numbers: {' '.join(numbers[:4])} ..."
    run = Run(
        looked.trace,
        source=_source(looked),
        target=axes.text(looked.target_tokens) if looked.target_tokens else None,
        names=runner.names_on(line) if isinstance(runner, Matcher) else runner.names,
        name=name,
        answer="\n".join([said, *looked.copied]),
        begin=looked.begin,
        summary=summary(runner.model.spec),
        edits=tuple(edits),
        code=editing.code(name, line, answer, edits, base.trace),
    )
    if not isinstance(runner, Runner):
        return run
    beam = _beam(runner, line, tap) if answer is None else ()
    return replace(run, hypotheses=beam, story=() if edits else _story(runner, looked))


def long_text(runner: Opened, line: str) -> list[int] | None:
    """The tokens of a text that a language model only reads, because it is too long to go on from; else None."""
    if not isinstance(runner, Runner) or runner.reads_apart:
        return None
    ids = runner.read([line], longest=LONGEST_READ)[0]
    return ids if len(ids) > LONGEST else None


@torch.no_grad()
def _read(runner: Runner, line: str, ids: list[int], name: str) -> Run:
    """Look at how a language model reads a long text, some tokens at a time, without going on from it."""
    model = runner.model.eval()
    device = next(model.parameters()).device
    numbers = torch.tensor([ids], device=device)
    recorder, state = lens.Recorder(sites=("query", "key", "value", "context")), model.start(None, 1)
    given, logits = [], torch.empty(0)
    for begin in range(0, len(ids), _STEP):
        step = numbers[:, begin : begin + _STEP]
        logits, state = model.step(step, state, recorder)
        after = numbers[0, begin + 1 : begin + 1 + step.shape[1]]
        chances = logits[0, : len(after)].float().log_softmax(dim=-1)
        given.append(chances.gather(-1, after.unsqueeze(-1)).squeeze(-1).exp().cpu())
    return Run(
        lens.trace_of(recorder, model, logits=logits[:, -_LIKELIEST:].cpu(), target=numbers),
        target=axes.text(runner.target.tokens(ids)),
        names=runner.names,
        name=name,
        summary=summary(model.spec),
        given=torch.cat(given),
        code=_READING.format(name=name),
    )


def summary(choice: spec.Spec) -> tuple[str, ...]:
    """A spec in words, one idea or size a line."""
    said = comparing.ideas(choice) | comparing.sizes(choice)
    return tuple(f"{what}: {words}" for what, words in said.items())


def _source(looked: Looked) -> Axis | None:
    match looked.perceived:
        case Picture():
            seen = looked.perceived
            return axes.image(seen.pixels, seen.rows, seen.columns, seen.leading)
        case Sound():
            heard = looked.perceived
            first = next((one for one in looked.trace if one.place.startswith("encoder")), None)
            positions = 0 if first is None else first.keys
            return axes.audio(heard.samples, heard.rate, positions, heard.per_token, looked.words)
        case Steps():
            return axes.trajectory(looked.source_tokens, looked.perceived.numbers, looked.perceived.first)
    return axes.text(looked.source_tokens) if looked.source_tokens else None


def _beam(runner: Runner, line: str, tap: Tap) -> tuple[Hypothesis, ...]:
    """All hypotheses that the search ended with, each with the source token that each of its tokens takes most from."""
    method = runner.decoding.method
    if not isinstance(method, Beam) or method.size < 2:
        return ()
    every = replace(runner.decoding, method=replace(method, n_best=method.size))
    found = []
    for answer in next(runner.run([line], every, tap=tap)):
        trace = runner.look(line, answer, tap=tap).trace
        crossing = any(one.place.endswith("cross_attention") for one in trace)
        heads = [head for head, _ in lens.best_heads([trace], count=2)] if crossing else []
        links = tuple(sorted(lens.align(trace, heads).links)) if heads else ()
        names = tuple(runner.names(list(answer.tokens)))
        found.append(Hypothesis(answer.text, names, answer.score, answer.log_probability, links))
    return tuple(found)


def _story(runner: Runner, looked: Looked) -> tuple[Why, ...]:
    """Why each token was answered, from the first on, for as many as takes a few seconds."""
    source, target = looked.trace.source, looked.trace.target
    if target is None or (source is not None and source.is_floating_point()) or not len(looked.trace):
        return ()
    found: list[Why] = []
    work, passes = 0.0, 0
    for position in range(looked.begin, target.shape[1] + 1):
        work += work_of(runner.model, source, position)
        if work > _WORK or passes > _PASSES:
            break
        found.append(lens.why(runner.model, source, target, position))
        passes += found[-1].passes
    return tuple(found)


def work_of(model: SequenceModel, source: Tensor | None, position: int) -> float:
    """About how many multiplications `lens.why` takes for a position."""
    read = 0 if source is None else source.shape[1]
    decoder: nn.Module = getattr(model, "decoder", model)
    parameters = sum(one.numel() for one in decoder.parameters())
    return 4.0 * (read + position) * position * parameters
