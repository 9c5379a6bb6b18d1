"""Captures: what comes back is what was seen, anywhere, and whatever was altered is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from qkv import spec
from qkv.errors import CheckpointError, QkvError, StorageError
from qkv.lens import Recorder, Trace, build_trace, capture, compute_statistics, look, read_capture, write_capture
from qkv.models import build
from tests.core.test_spec import build_small_spec, draw_spec
from tests.lens.test_statistics import attentions, make_attention_trace
from tests.lens.test_trace import step_through, tokens


def assert_same(found: Trace, right: Trace) -> None:
    assert set(found.attentions) == set(right.attentions)
    for attention in right:
        other = found[attention.place]
        torch.testing.assert_close(
            other.compute_weights(), attention.compute_weights()
        )  # another layout may add in another order
        assert torch.equal(other.context, attention.context) and torch.equal(other.value, attention.value)
        if attention.output_weight is not None:
            torch.testing.assert_close(other.flow(0), attention.flow(0))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw_spec(), st.integers(0, 2**31))
def test_there_and_back(tmp_path: Path, choice: spec.Spec, seed: int) -> None:
    torch.manual_seed(seed)
    model = build(choice).eval()
    given_tokens = tokens(choice)
    trace = look(model, **given_tokens)
    write_capture(trace, tmp_path / "one.qkv", source_tokens=["a", "\u00e9"], target_tokens=None)
    opened = read_capture(tmp_path / "one.qkv")
    assert opened.source_tokens == ("a", "\u00e9") and opened.target_tokens is None
    assert_same(opened.trace, trace)
    assert trace.logits is not None and opened.trace.logits is not None
    assert torch.equal(opened.trace.logits, trace.logits)
    if isinstance(choice, spec.Recurrent) or choice.decoder is not None:
        recorder = Recorder()
        step_through(model, given_tokens, recorder)
        stepped = build_trace(recorder, model)
        write_capture(stepped, tmp_path / "one.qkv")
        assert_same(read_capture(tmp_path / "one.qkv").trace, stepped)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attentions())
def test_any_terms(tmp_path: Path, attention: Any) -> None:
    trace = Trace({}, {attention.place: attention})
    if attention.score_terms.score is not None:
        with pytest.raises(QkvError, match="a custom function"):
            write_capture(trace, tmp_path / "one.qkv")
        return
    write_capture(trace, tmp_path / "one.qkv")
    found = read_capture(tmp_path / "one.qkv").trace
    assert_same(found, trace)
    torch.testing.assert_close(compute_statistics(found["here"]).received, compute_statistics(attention).received)


def test_what_steps_share_is_written_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(build_small_spec()).eval()
    sizes = []
    for targets in (20, 80):
        recorder = Recorder()
        step_through(model, tokens(model.spec, targets=targets), recorder)
        write_capture(build_trace(recorder, model), tmp_path / "one.qkv")
        with safe_open(tmp_path / "one.qkv", framework="pt") as file:
            sizes.append(sum(file.get_tensor(name).numel() for name in file.keys()))  # noqa: SIM118
    assert sizes[1] < 4.2 * sizes[0]


def altered(path: Path, change: Any, signed: bool) -> None:
    """Change a capture's description or blocks, and put the right checksum to it if `signed`."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["qkv"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    if signed:
        header.pop("sha256")
        header["sha256"] = capture._compute_digest(header, tensors)
    save_file(tensors, path, {"qkv": json.dumps(header)})


def bend(header: Any, tensors: Any) -> None:
    name = header["places"]["decoder.0.cross_attention"]["calls"][0]["value"]
    tensors[name][0, 1, 2] += 0.5


def test_what_was_altered_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(build_small_spec()).eval()
    trace, path = look(model, [1, 2, 3], [1, 4]), tmp_path / "one.qkv"

    def again() -> Path:
        write_capture(trace, path)
        return path

    for change, signed, words in (
        (bend, False, "does not have the checksum"),
        (bend, True, r"cross_attention head 1 claims"),
        (lambda header, _: header["claims"].clear(), False, "does not have the checksum"),
        (lambda header, _: header["claims"].clear(), True, "does not fit its blocks"),
        (lambda header, _: header["places"].popitem(), True, "does not fit its blocks"),
        (lambda header, _: header.update(format=99), True, "this qkv reads 1"),
        (lambda header, _: header["inputs"].update(logits="none"), True, "does not fit its blocks"),
    ):
        altered(again(), change, signed)
        with pytest.raises(CheckpointError, match=words):
            read_capture(path)
    whole = again().read_bytes()
    for part in (whole[:7], whole[: len(whole) // 2], whole[:-1], b"", whole[:-9] + b"\x07" + whole[-8:]):
        path.write_bytes(part)
        with pytest.raises(CheckpointError):
            read_capture(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="is not a capture"):
        read_capture(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_capture(tmp_path / "none.qkv")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    trace = Trace({}, {"here": make_attention_trace([(*torch.randn(3, 1, 1, 2, 4).unbind(0), {})])})
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        write_capture(trace, tmp_path / "file" / "one.qkv")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
