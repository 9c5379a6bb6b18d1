"""The page: safe to open, self-contained, small, and right about its own numbers."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest
import torch

from qkv import spec
from qkv.errors import QkvError, StorageError
from qkv.lens import Intervene, Trace, look
from qkv.models import build
from qkv.presets import encoder_decoder
from qkv.view import page
from test_spec import small

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


def looked(**changes: Any) -> Trace:
    torch.manual_seed(0)
    return look(build(small(**changes)).eval(), [1, 2, 3, 4], [1, 4, 5])


def block(text: str, described: dict[str, Any]) -> numpy.ndarray[Any, Any]:
    raw = base64.b64decode(Parts(text).parts["blocks"])
    return numpy.frombuffer(
        raw, described["kind"], count=int(numpy.prod(described["shape"])), offset=described["at"]
    ).reshape(described["shape"])


def test_the_page_holds_the_tensors_themselves(tmp_path: Path) -> None:
    trace = looked(layers=2)
    text = page(trace, tmp_path / "look.html").read_text(encoding="utf-8")
    document = json.loads(Parts(text).parts["document"])
    assert [one["place"] for one in document["attentions"]] == list(trace.attentions)
    for one in document["attentions"]:
        attention = trace[one["place"]]
        for site in ("query", "key", "value", "context"):
            assert numpy.array_equal(block(text, one[site]), getattr(attention, site)[0].numpy())
        if "visible" in one:
            visible = torch.from_numpy(block(text, one["visible"]).copy()).bool().expand(attention.scores()[0].shape)
            assert torch.equal(visible, attention.scores()[0] > -torch.inf)
    logits = trace.logits
    assert logits is not None
    for position, answer in enumerate(document["answers"]):
        number, share = answer["chosen"]
        assert number == str([4, 5, int(logits[0, 2].argmax())][position])
        assert share == pytest.approx(logits[0, position].softmax(dim=-1)[int(number)].item())
        assert len(answer["best"]) == 5 and answer["best"] == sorted(answer["best"], key=lambda pair: -pair[1])


EVIL = ["</script><script>document.title='hacked'</script>", "<!--<script>", "{{blocks}}", "]]>\u2028&amp;\"'\\"]


def test_tokens_cannot_leave_their_place(tmp_path: Path) -> None:
    text = page(
        looked(), tmp_path / "look.html", source_tokens=EVIL, target_tokens=EVIL[:3], title=EVIL[0], note=EVIL[1],
        names=lambda numbers: [EVIL[number % 4] for number in numbers],
    ).read_text(encoding="utf-8")  # fmt: skip
    harmless = page(looked(), tmp_path / "harmless.html").read_text(encoding="utf-8")
    parts = Parts(text)
    assert parts.tags == Parts(harmless).tags
    assert parts.parts["title"] == EVIL[0]
    document = json.loads(parts.parts["document"])
    assert document["source"] == EVIL and document["title"] == EVIL[0] and document["note"] == EVIL[1]
    assert parts.parts["blocks"] == Parts(harmless).parts["blocks"]


def test_the_page_needs_no_network_and_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(encoder_decoder(source_vocab=30, target_vocab=80, d_model=256, heads=4, d_ff=512, layers=3)).eval()
    path = page(look(model, torch.randint(30, (10,)), torch.randint(80, (9,))), tmp_path / "look.html")
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    assert Parts(text).addresses == []
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\s*[({\"']", text)
    assert "default-src 'none'" in text


def test_a_classifier_answers_once(tmp_path: Path) -> None:
    encoder = spec.Stack(8, (spec.Block(spec.Attention(2, 4), spec.FeedForward(8)),), spec.Tokens(9))
    trace = look(build(spec.Transformer(encoder, None, spec.Classes(3))).eval(), [1, 2, 3])
    text = page(trace, tmp_path / "look.html", names=lambda numbers: ["abc"[i] for i in numbers]).read_text("utf-8")
    (answer,) = json.loads(Parts(text).parts["document"])["answers"]
    assert answer["chosen"] == answer["best"][0] and {name for name, _ in answer["best"]} == {"a", "b", "c"}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(QkvError, match="source_tokens: 2 strings were given for a trace of 4 tokens"):
        page(looked(), tmp_path / "look.html", source_tokens=["a", "b"])
    with pytest.raises(StorageError, match="Choose another path"):
        page(looked(), tmp_path / "absent" / "look.html")


def models() -> dict[str, Trace]:
    """Traces of every kind of attention that the page must recompute by itself."""
    torch.manual_seed(0)
    rich = spec.Attention(
        4, 4, kv_heads=2, d_value=3, causal=True, window=3, position=spec.RelativeBias(4, 8), softcap=2.0, sinks=True
    )
    block = spec.Block(rich, spec.FeedForward(8))
    decoder_only = build(spec.Transformer(None, spec.Stack(8, (block,), spec.Tokens(9)), spec.Vocabulary()))
    kinds: tuple[Literal["additive"] | None, ...] = ("additive", None)
    recurrent = {kind: build(spec.Recurrent("gru", 8, 1, spec.Tokens(9), spec.Tokens(9), kind)) for kind in kinds}
    return {
        "encoder-decoder": looked(layers=2),
        "rich": look(decoder_only.eval(), target=torch.randint(9, (12,))),
        **{f"recurrent {kind}": look(model.eval(), [1, 2, 3], [1, 4]) for kind, model in recurrent.items()},
    }


def opened(path: Path, profile: Path) -> str:
    """The page's document after its scripts ran, in a browser that can reach nothing."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--virtual-time-budget=2000",
        "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser; install chromium to run it")
def test_the_page_certifies_itself_in_a_browser(tmp_path: Path) -> None:
    frames = []
    traces = models()
    # A context that is not what the weights give must be found out.
    torch.manual_seed(0)
    bent = Intervene("decoder.0.cross_attention", "context", lambda context: context + 0.5)
    traces["bent"] = look(build(small()).eval(), [1, 2, 3], [1, 4], tap=bent)
    evil = EVIL[:2] + ["a", "b"]
    for number, (name, trace) in enumerate(traces.items()):
        named = name == "encoder-decoder"
        page(trace, tmp_path / f"{number}.html", source_tokens=evil if named else (), title=EVIL[0] if named else name)
        frames.append(opened(tmp_path / f"{number}.html", tmp_path / "profile"))
    for name, text in zip(traces, frames, strict=True):
        certified = re.search(r'data-certified="([^"]+)"', text)
        if name == "recurrent None":
            assert "no attention to look at" in text and certified is None
            continue
        assert certified is not None, f"{name}: the page's script did not finish"
        if name == "bent":
            assert float(certified[1]) > 0.4 and "Not certified" in text
        else:
            assert float(certified[1]) < 1e-5, name
            assert "looks at" in text and "asks" in text
    assert "<title>hacked" not in frames[0]
