"""The page: safe to open, self-contained, small, and right about its own numbers."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from qkv import spec
from qkv.errors import QkvError, StorageError
from qkv.lens import Intervention, Recorder, Trace, build_trace, knock_out, look, report_heads
from qkv.lens.timestamps import TimedWord
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.view import Run, axes, build_document, overview, write_html
from qkv.view.blocks import Blocks, quantize_int8, round_trip
from qkv.view.run import shorten_names
from tests.core.test_spec import build_small_spec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Parts(HTMLParser):
    """The text of each script and style of a page, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.parts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self._inside = (named.get("id") or tag) if tag in ("script", "style", "title") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.parts[self._inside] = self.parts.get(self._inside, "") + data


def make_trace(**changes: Any) -> Trace:
    torch.manual_seed(0)
    return look(build(build_small_spec(**changes)).eval(), [1, 2, 3, 4], [1, 4, 5])


def read_blocks(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(Parts(text).parts["blocks"]))


def decode_block(raw: bytes, described: dict[str, Any]) -> numpy.ndarray[Any, Any]:
    """A block as any reader of the file would take it."""
    count = int(numpy.prod(described["shape"]))
    found = numpy.frombuffer(raw, described["dtype"], count=count, offset=described["offset"]).reshape(
        described["shape"]
    )
    if "scale" in described:
        found = found.astype("float32") * decode_block(raw, described["scale"]).astype("float32")[..., None]
    return found


def test_the_page_holds_the_tensors_themselves(tmp_path: Path) -> None:
    trace = make_trace(layers=2)
    text = write_html(trace, tmp_path / "look.html").read_text(encoding="utf-8")
    made, raw = json.loads(Parts(text).parts["document"]), read_blocks(text)
    (run,) = made["runs"]
    assert [one["place"] for one in run["attentions"]] == list(trace.attentions)
    assert made["precision"] == {"dtype": "float32", "error": 0.0} and not made["live"]
    for one in run["attentions"]:
        attention = trace[one["place"]]
        for site in ("query", "key", "value", "context"):
            assert numpy.array_equal(decode_block(raw, one[site]), getattr(attention, site)[0].numpy())
        assert one["certified"] == pytest.approx(attention.certify().tolist(), abs=1e-11)
        reports = [entry for entry in report_heads(trace) if entry.place == one["place"]]
        for name in ("entropy", "sink", "previous"):
            assert one["statistics"][name] == pytest.approx([getattr(entry, name) for entry in reports], rel=1e-4)
        largest = attention.compute_weights()[0].amax(dim=-1).mean(dim=-1).tolist()
        assert one["statistics"]["largest"] == pytest.approx(largest, rel=1e-4)
    logits = trace.logits
    assert logits is not None
    for position, answer in enumerate(run["answers"]):
        number, share = answer["chosen"]
        assert number == str([4, 5, int(logits[0, 2].argmax())][position])
        assert share == pytest.approx(logits[0, position].softmax(dim=-1)[int(number)].item())
        assert len(answer["best"]) == 5 and answer["best"] == sorted(answer["best"], key=lambda pair: -pair[1])


def recompute_weights(one: dict[str, Any], raw: bytes) -> Tensor:
    """The weights (heads, queries, keys) that a page makes of what it is given, by the rules of the document."""
    query, key = (torch.from_numpy(decode_block(raw, one[site]).astype("float32")) for site in ("query", "key"))
    queries, keys = one["n_queries"], one["n_keys"]
    key = key.repeat_interleave(one["heads"] // one["kv_heads"], dim=0)
    if "scores" in one:
        scores = torch.from_numpy(decode_block(raw, one["scores"]).copy())
    else:
        scores = query @ key.mT * one["scale"]
        if one["softcap"]:
            scores = one["softcap"] * torch.tanh(scores / one["softcap"])
    away = torch.arange(keys) - torch.arange(queries)[:, None]
    if "score_bias" in one:
        scores = scores + torch.from_numpy(decode_block(raw, one["score_bias"]).copy())
    if "score_bias_by_distance" in one:
        scores = (
            scores + torch.from_numpy(decode_block(raw, one["score_bias_by_distance"]).copy())[:, away + queries - 1]
        )
    visible = torch.ones(queries, keys, dtype=torch.bool)
    if rule := one.get("rule"):
        ahead = away - rule["past"]
        visible &= (ahead <= 0) if rule["causal"] else visible
        visible &= (ahead.abs() < rule["window"]) if rule["window"] is not None else visible
    elif "visible" in one:
        visible = torch.from_numpy(decode_block(raw, one["visible"]).copy()).bool()
    scores = scores.masked_fill(~visible, -torch.inf)
    if "sinks" in one:
        sinks = torch.from_numpy(decode_block(raw, one["sinks"]).copy())
        return torch.cat([scores, sinks[:, None, None].expand(-1, queries, 1)], -1).softmax(-1)[..., :-1]
    return scores.softmax(dim=-1).nan_to_num(0.0)


def make_traces() -> dict[str, Trace]:
    """Traces of every kind of attention that a page must recompute by itself."""
    torch.manual_seed(0)
    rich = spec.Attention(
        4, 4, kv_heads=2, d_value=3, causal=True, window=3, position=spec.RelativeBias(4, 8), softcap=2.0, sinks=True
    )
    block = spec.Block(rich, spec.FeedForward(8))
    decoder_only = build(spec.Transformer(None, spec.Stack(8, (block,), spec.Tokens(9)), spec.Vocabulary())).eval()
    for parameter in decoder_only.parameters():  # what relative positions add is 0 at first
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randint(9, (12,))
    recorder, state = Recorder(), decoder_only.start(None, 1)
    for begin in range(0, 12, 5):
        _, state = decoder_only.step(tokens[None, begin : begin + 5], state, recorder)
    additive = build(spec.Recurrent("gru", 8, 1, spec.Tokens(9), spec.Tokens(9), "additive")).eval()
    hidden = knock_out("decoder.*.cross_attention", [1], queries=[2])
    return {
        "encoder-decoder": make_trace(layers=2),
        "rich": look(decoder_only, target=tokens),
        "step by step": build_trace(recorder, decoder_only, target=tokens[None]),
        "additive": look(additive, [1, 2, 3], [1, 4]),
        "edited": look(build(build_small_spec()).eval(), [1, 2, 3], [1, 4, 5], tap=hidden),
    }


def test_the_page_has_all_it_takes_to_recompute_the_weights() -> None:
    for name, trace in make_traces().items():
        made = build_document(trace)
        for one in made.data["runs"][0]["attentions"]:
            expected = trace[one["place"]].compute_weights()[0].detach()
            assert torch.allclose(recompute_weights(one, made.blocks), expected, atol=1e-6), (name, one["place"])
            ruled = name in ("rich", "step by step") or (name == "encoder-decoder" and one["kind"] == "self")
            assert not ruled or ("rule" in one and "visible" not in one), name
        assert name != "rich" or one["score_bias_by_distance"]["shape"] == [4, 23]


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_smaller_numbers_tell_their_error(kind: Literal["float16", "int8"]) -> None:
    for name, trace in make_traces().items():
        made = build_document(trace, dtype=kind)
        (run,) = made.data["runs"]
        worst = 0.0
        for one in run["attentions"]:
            assert ("context" in one) == (kind == "float16")
            difference = (
                (recompute_weights(one, made.blocks) - trace[one["place"]].compute_weights()[0].detach()).abs().max()
            )
            worst = max(worst, float(difference))
        assert made.data["precision"]["error"] == pytest.approx(worst, abs=1e-6), name
        assert worst < {"float16": 1e-3, "int8": 0.02}[kind]


def test_models_are_called_by_the_last_parts_of_their_paths() -> None:
    assert shorten_names(["/home/me/runs/multi30k"]) == ["multi30k"]
    assert shorten_names(["runs/one/last", "runs/two/last"]) == ["one/last", "two/last"]
    assert shorten_names(["", "pronunciation"]) == ["", "pronunciation"] and shorten_names(["a/b", "a/b"]) == ["b", "b"]
    (run,) = build_document(Run(make_trace(), name="runs/mine")).data["runs"]
    assert (run["name"], run["path"]) == ("mine", "runs/mine")


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=9))
def test_steps_lose_less_than_half_of_one(numbers: list[float]) -> None:
    tensor = torch.tensor([numbers])
    steps, _ = quantize_int8(tensor)
    rest = (round_trip(tensor, "int8") - tensor).abs().max()
    # beyond half a step: the step is itself rounded, and none is smaller than float16's smallest
    assert rest <= 0.51 * steps.float() + 2e-3 * tensor.abs().max() + 1e-5


def test_two_runs_share_what_is_the_same() -> None:
    one, two = Run(make_trace(), name="one"), Run(make_trace(), name="two")
    assert build_document([one, two]).blocks == build_document(one).blocks
    assert [run["name"] for run in build_document([one, two]).data["runs"]] == ["one", "two"]
    with pytest.raises(QkvError, match="3 runs were given to show; expected one, or two side by side"):
        build_document([one, two, one])


EVIL = ["</script><script>document.title='hacked'</script>", "<!--<script>", "{{blocks}}", "]]>\u2028&amp;\"'\\"]


def test_tokens_cannot_leave_their_place(tmp_path: Path) -> None:
    run = Run(
        make_trace(),
        source=axes.build_text_axis(EVIL),
        target=axes.build_text_axis(EVIL[:3]),
        token_decoder=lambda numbers: [EVIL[number % 4] for number in numbers],
        name=EVIL[0],
        summary=(EVIL[1],),
        code=EVIL[0],
    )
    text = write_html(run, tmp_path / "look.html", title=EVIL[0], note=EVIL[1]).read_text(encoding="utf-8")
    harmless = write_html(make_trace(), tmp_path / "harmless.html").read_text(encoding="utf-8")
    parts = Parts(text)
    assert parts.tags == Parts(harmless).tags
    assert parts.parts["title"] == EVIL[0]
    made = json.loads(parts.parts["document"])
    assert made["runs"][0]["axes"]["source"]["tokens"] == EVIL and made["title"] == EVIL[0] and made["note"] == EVIL[1]
    assert parts.parts["blocks"] == Parts(harmless).parts["blocks"]


def test_the_page_needs_no_network_and_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(encoder_decoder(source_vocab=30, target_vocab=80, d_model=256, heads=4, d_ff=512, layers=3)).eval()
    path = write_html(look(model, torch.randint(30, (10,)), torch.randint(80, (9,))), tmp_path / "look.html")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert Parts(text).addresses == ["data:,"]
    assert "default-src 'none'" in text and "connect-src 'none'" in text


def test_a_classifier_answers_once(tmp_path: Path) -> None:
    encoder = spec.Stack(8, (spec.Block(spec.Attention(2, 4), spec.FeedForward(8)),), spec.Tokens(9))
    trace = look(build(spec.Transformer(encoder, None, spec.Classes(3))).eval(), [1, 2, 3])
    (run,) = build_document(Run(trace, token_decoder=lambda numbers: ["abc"[i] for i in numbers])).data["runs"]
    (answer,) = run["answers"]
    assert answer["chosen"] == answer["best"][0] and {name for name, _ in answer["best"]} == {"a", "b", "c"}
    assert "target" not in run["axes"] and run["axes"]["source"]["tokens"] == ["1", "2", "3"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(QkvError, match="source: 2 strings were given for a trace of 4 tokens"):
        Run(make_trace(), source=axes.build_text_axis(["a", "b"]))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose another folder"):
        write_html(make_trace(), tmp_path / "file" / "look.html")
    with pytest.raises(QkvError, match=r"expected \(height, width, 3\) uint8"):
        axes.build_image_axis(torch.zeros(3, 4, 4), 2, 2)


def test_axes_of_images_sounds_and_trajectories() -> None:
    blocks = Blocks()
    pixels = torch.randint(256, (4, 6, 3), dtype=torch.uint8)
    seen = axes.build_image_axis(pixels, 2, 3, leading=1).to_json(blocks)
    assert seen["tokens"] == ["[CLS]", "1,1", "1,2", "1,3", "2,1", "2,2", "2,3"]
    assert seen["image"]["pixels"]["dtype"] == "uint8" and seen["image"]["pixels"]["shape"] == [4, 6, 3]
    samples = torch.sin(torch.arange(16_000) / 10.0)
    heard = axes.build_audio_axis(samples, 16_000, 50, 0.02).to_json(blocks)
    assert heard["audio"]["seconds"] == 1.0 and heard["tokens"][25] == "0.50 s"
    peaks = decode_block(blocks.to_bytes(), heard["audio"]["peaks"])
    assert peaks.shape == (2000, 2) and peaks[:, 0].min() == samples.min() and peaks[:, 1].max() == samples.max()
    said = axes.build_audio_axis(
        samples, 16_000, 50, 0.02, [TimedWord("one", 0.1, 0.31), TimedWord("two", 0.31, 0.4)]
    ).to_json(blocks)
    assert said["audio"]["words"] == [["one", 0.1, 0.31], ["two", 0.31, 0.4]] and said["audio"]["samples"] == 16_000
    assert said["tokens"][4:6] == ["0.08 s", "0.10 s one"] and said["tokens"][15:21:5] == ["0.30 s two", "0.40 s"]
    held = {"state": torch.randn(2, 4), "action": torch.tensor([[0.0], [1.0]])}
    acted = axes.build_trajectory_axis(["state 5", "action 5", "state 6", "action 6"], held, first_step=4).to_json(
        blocks
    )
    assert acted["trajectory"]["kinds"] == ["state", "action"] and acted["trajectory"]["first_step"] == 4
    for kind, numbers in held.items():
        assert numpy.array_equal(decode_block(blocks.to_bytes(), acted["trajectory"]["values"][kind]), numbers.numpy())
    with pytest.raises(
        QkvError, match="3 positions and values of shapes .* were given; expected one for each kind and step"
    ):
        axes.build_trajectory_axis(["a", "b", "c"], held)
    assert numpy.array_equal(decode_block(blocks.to_bytes(), seen["image"]["pixels"]), pixels.numpy())


def test_a_long_run_is_told_from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "_MAX_MATRIX_SIZE", 100)
    monkeypatch.setattr(overview, "OVERVIEW_SIZE", 8)
    monkeypatch.setattr(overview, "_MAX_WEIGHTS_AT_ONCE", 64)
    trace = make_traces()["step by step"]
    made = build_document(trace)
    (run,) = made.data["runs"]
    (one,) = run["attentions"]
    assert run["long"] and "query" not in one and one["overview_heads"] == [0, 1, 2, 3]
    weights = trace["decoder.0.self_attention"].compute_weights()[0].detach()
    pooled = functional.max_pool2d(weights, 2)
    assert numpy.allclose(decode_block(made.blocks, one["overview"]), pooled.numpy(), atol=1e-3)
    largest = decode_block(made.blocks, one["per_query"]["largest"])
    assert numpy.allclose(largest, weights.amax(dim=-1).numpy(), atol=1e-6)
    assert one["statistics"]["largest"] == pytest.approx(largest.mean(axis=-1).tolist(), rel=1e-4)
    assert max(one["certified"]) < 1e-5
    monkeypatch.setattr(overview, "_MAX_WEIGHTS_PER_PAGE", 1.0)
    (one,) = build_document(trace).data["runs"][0]["attentions"]
    assert one["overview_heads"] == [0] and one["statistics"]["entropy"][1:] == [None] * 3


def test_a_tile_is_what_the_matrix_has_there() -> None:
    attention = make_traces()["step by step"]["decoder.0.self_attention"]
    weights = attention.compute_weights(1)[0].detach()
    for rows, columns, size in (((0, 12), (0, 12), 12), ((3, 10), (2, 9), 3), ((0, 5), (5, 12), 4)):
        found, pooled = overview.compute_tile(attention, 1, rows, columns, size)
        down, across = pooled
        part = weights[slice(*rows), slice(*columns)]
        for i, j in itertools.product(range(found.shape[0]), range(found.shape[1])):
            cell = part[i * down : (i + 1) * down, j * across : (j + 1) * across]
            assert float(found[i, j]) == pytest.approx(float(cell.max()), abs=1e-6)
        assert max(found.shape) <= size
    with pytest.raises(QkvError, match="rows 3 to 13 were requested; expected a span within 0 to 12"):
        overview.compute_tile(attention, 0, (3, 13), (0, 2), 4)


def open_in_browser(path: Path, profile: Path) -> str:
    """The page's document after its program ran, in a browser that can reach nothing."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--virtual-time-budget=20000",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser; install chromium to run it")
def test_the_page_certifies_itself_in_a_browser(tmp_path: Path) -> None:
    # A context that is not what the weights give must be found out.
    torch.manual_seed(0)
    bent = Intervention("decoder.0.cross_attention", "context", lambda context: context + 0.5)
    traces = {**make_traces(), "bent": look(build(build_small_spec()).eval(), [1, 2, 3], [1, 4], tap=bent)}
    for name, trace in traces.items():
        run = Run(trace, source=axes.build_text_axis(EVIL)) if name == "encoder-decoder" else trace
        write_html(run, tmp_path / "look.html", title=EVIL[0], note=EVIL[1])
        text = open_in_browser(tmp_path / "look.html", tmp_path / "profile")
        certified = re.search(r'data-certified="([^"]+)"', text)
        assert certified is not None, f"{name}: the page's program did not finish"
        assert float(certified[1]) > 0.4 if name == "bent" else float(certified[1]) < 1e-5, name
        assert "<title>hacked" not in text
