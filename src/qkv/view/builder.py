"""Everything that the page shows of a model and its input: the trace, the beam, and the explanation of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qkv import compare, lens, spec
from qkv.decoding import Beam
from qkv.lens import Explanation, Trace
from qkv.models import SequenceModel
from qkv.tap import NO_TAP, Tap
from qkv.tasks.base import TaskModel
from qkv.tasks.text_generator import (
    MAX_INPUT_TOKENS,
    AudioInput,
    ImageInput,
    TrajectoryInput,
)
from qkv.view import axes, run_edits
from qkv.view.axes import Axis
from qkv.view.run import Edit, Hypothesis, Run

MAX_READ_TOKENS = 2**17
"""The most tokens of a long text that a language model is traced over."""

_MAX_EXPLANATION_WORK = 5e10
"""How many multiplications the explanations of a page may take, roughly: a few seconds."""

_MAX_EXPLANATION_PASSES = 100  # forward passes of the decoder for the explanations of a page

_CHUNK_SIZE = 512  # tokens of a long text in one step
_N_TOP_PREDICTION_POSITIONS = 200  # last positions of a long text whose most probable tokens are shown

_READ_CODE = """import qkv
from qkv import view

model = qkv.load({name!r})
run = view.build_run(model, text)  # text: the whole input
view.write_html(run, "look.html")"""


def build_run(
    model: TaskModel, line: str, answer: str | None = None, *, name: str = "", edits: Sequence[Edit] = ()
) -> Run:
    """Answer a line (or take the given answer), and return the trace with all else that the page shows.

    name: the name or path that the model was loaded by, such as "pronunciation". edits: changes of the run, as in
    `qkv.view.run_edits`. Raises QkvError for an edit of something that does not exist, and as `model.look` does.
    """
    if answer is None and not edits and (ids := encode_long_text(model, line)) is not None:
        return _build_reading_run(model, line, ids, name)
    base = model.look(line, answer)
    tap = run_edits.build_tap(edits, base) if edits else NO_TAP
    trace = model.look(line, answer, tap=tap) if edits else base
    text = trace.answer.text
    if model.task.name == "feature-extraction":
        numbers = text.split()
        text = f"a vector of {len(numbers):,} numbers: {' '.join(numbers[:4])} ..."
    run = replace(
        build_trace_run(trace, name),
        token_decoder=model.candidate_names(line),
        answer="\n".join([text, *trace.copy_report]),
        answer_start=trace.answer_start,
        summary=summarize_spec(model.module.spec),
        edits=tuple(edits),
        code=run_edits.format_code(name, line, answer, edits, base),
    )
    if "generation" not in model.capabilities:
        return run
    beam = _build_hypotheses(model, line, tap) if answer is None else ()
    return replace(run, hypotheses=beam, explanations=() if edits else _explain_answer(model, trace))


def build_trace_run(trace: Trace, name: str = "") -> Run:
    """Return what the page shows of a trace alone, without the model: no other hypotheses and no explanations."""
    return Run(
        trace,
        source=_build_source_axis(trace),
        target=axes.build_text_axis(trace.target_tokens) if trace.target_tokens else None,
        token_decoder=trace.token_names,
        name=name,
        answer="" if trace.answer is None else str(trace.answer),
        answer_start=trace.answer_start,
    )


def encode_long_text(model: TaskModel, line: str) -> list[int] | None:
    """Return the tokens of a text that is too long for a language model to continue; None for any other text."""
    if "perplexity" not in model.capabilities:
        return None
    generator: Any = model
    ids = generator.validate_inputs([line], max_tokens=MAX_READ_TOKENS)[0]
    return ids if len(ids) > MAX_INPUT_TOKENS else None


@torch.no_grad()
def _build_reading_run(generator: Any, line: str, ids: list[int], name: str) -> Run:
    """Trace a language model over a long text, some tokens at a time, without continuing it."""
    model = generator.module.eval()
    device = next(model.parameters()).device
    numbers = torch.tensor([ids], device=device)
    recorder, state = lens.Recorder(sites=("query", "key", "value", "context")), model.start(None, 1)
    probabilities, logits = [], torch.empty(0)
    for begin in range(0, len(ids), _CHUNK_SIZE):
        step = numbers[:, begin : begin + _CHUNK_SIZE]
        logits, state = model.step(step, state, recorder)
        following = numbers[0, begin + 1 : begin + 1 + step.shape[1]]
        log_probabilities = logits[0, : len(following)].float().log_softmax(dim=-1)
        probabilities.append(log_probabilities.gather(-1, following.unsqueeze(-1)).squeeze(-1).exp().cpu())
    trace = lens.build_trace(recorder, model, logits=logits[:, -_N_TOP_PREDICTION_POSITIONS:].cpu(), target=numbers)
    return Run(
        replace(trace, text=line),
        target=axes.build_text_axis(generator.target_tokenizer.display_tokens(ids)),
        token_decoder=generator.token_names,
        name=name,
        summary=summarize_spec(model.spec),
        target_probabilities=torch.cat(probabilities),
        code=_READ_CODE.format(name=name),
    )


def summarize_spec(model_spec: spec.Spec) -> tuple[str, ...]:
    """Describe a spec in words, one idea or size on each line."""
    description = compare.describe_design(model_spec) | compare.describe_sizes(model_spec)
    return tuple(f"{what}: {words}" for what, words in description.items())


def _build_source_axis(result: Trace) -> Axis | None:
    match result.input:
        case ImageInput():
            image = result.input
            return axes.build_image_axis(image.pixels, image.rows, image.columns, image.num_prefix_tokens)
        case AudioInput():
            audio = result.input
            first = next((one for one in result if one.place.startswith("encoder")), None)
            positions = 0 if first is None else first.keys
            return axes.build_audio_axis(
                audio.samples, audio.sample_rate, positions, audio.seconds_per_position, result.word_times
            )
        case TrajectoryInput():
            return axes.build_trajectory_axis(result.source_tokens, result.input.values, result.input.first_step)
    return axes.build_text_axis(result.source_tokens) if result.source_tokens else None


def _build_hypotheses(generator: Any, line: str, tap: Tap) -> tuple[Hypothesis, ...]:
    """Return all hypotheses that the search ended with, each aligned with the source tokens."""
    method = generator.decoding.method
    if not isinstance(method, Beam) or method.size < 2:
        return ()
    every = replace(generator.decoding, method=replace(method, n_best=method.size))
    found = []
    for answer in next(generator.predict_ranked([line], every, tap=tap)):
        trace = generator.look(line, answer, tap=tap)
        crossing = any(one.place.endswith("cross_attention") for one in trace)
        heads = [head for head, _ in lens.find_best_heads([trace], n_heads=2)] if crossing else []
        links = tuple(sorted(lens.align(trace, heads).links)) if heads else ()
        names = tuple(generator.token_names(list(answer.tokens)))
        found.append(Hypothesis(answer.text, names, answer.score, answer.log_probability, links))
    return tuple(found)


def _explain_answer(generator: Any, result: Trace) -> tuple[Explanation, ...]:
    """Explain the tokens of the answer, from the first on: as many as take a few seconds."""
    source, target = result.source, result.target
    if target is None or (source is not None and source.is_floating_point()) or not len(result):
        return ()
    found: list[Explanation] = []
    work, passes = 0.0, 0
    for position in range(result.answer_start, target.shape[1] + 1):
        work += estimate_work(generator.module, source, position)
        if work > _MAX_EXPLANATION_WORK or passes > _MAX_EXPLANATION_PASSES:
            break
        found.append(lens.explain(generator.module, source, target, position))
        passes += found[-1].forward_passes
    return tuple(found)


def estimate_work(model: SequenceModel, source: Tensor | None, position: int) -> float:
    """Return about how many multiplications `lens.explain` takes for a position."""
    read = 0 if source is None else source.shape[1]
    decoder: nn.Module = getattr(model, "decoder", model)
    parameters = sum(one.numel() for one in decoder.parameters())
    return 4.0 * (read + position) * position * parameters
