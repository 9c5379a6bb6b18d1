"""A page that is alive: what it asks is answered, what it may not ask is refused, and nobody else can read it."""

from __future__ import annotations

import base64
import html
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import qkv
from qkv import lens, tasks
from qkv.errors import MissingExtraError, QkvError, StorageError
from qkv.tasks import TextGenerator
from qkv.view import Server, Session, explore

CROSS = "decoder.0.cross_attention"
HIDE = {"kind": "knock_out", "keys": [3]}


@pytest.fixture(scope="module")
def runner() -> TextGenerator:
    opened = tasks.load("pronunciation")
    assert isinstance(opened, TextGenerator)
    return opened


@pytest.fixture
def session(runner: TextGenerator) -> Session:
    return Session([("pronunciation", runner)], "cat")


def test_a_look_with_changes_is_what_its_code_makes(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    edits = [
        HIDE | {"keys": [1], "place": CROSS, "head": 2, "queries": [1, 2]},
        {"kind": "ablate", "place": CROSS, "head": 1, "mode": "mean"},
        {"kind": "ablate", "place": "encoder.1.self_attention", "head": 3, "mode": "zero"},
        {"kind": "swap_values", "place": "decoder.1.cross_attention", "key": 0, "with": 2},
    ]
    before = session.build_document().data["runs"][0]
    reply, blocks = session.ask({"ask": "look", "edits": edits})
    run = reply["run"]
    assert run["edits"] == edits and blocks
    assert [one["chosen"] for one in run["answers"]] != [one["chosen"] for one in before["answers"]]
    names: dict[str, Any] = {}
    exec(run["code"], names)
    assert capsys.readouterr().out.strip() == str(names["trace"].answer)
    logits = names["trace"].logits[0]
    for position, answer in enumerate(run["answers"]):
        assert answer["chosen"][1] == pytest.approx(float(logits[position].softmax(-1).max()), abs=1e-5) or (
            answer["chosen"][0] != answer["best"][0][0]
        )
    untouched, _ = session.ask({"ask": "look", "edits": []})
    assert untouched["run"]["answers"] == before["answers"]


def test_hiding_everywhere_is_told_by_the_weights(session: Session) -> None:
    reply, blocks = session.ask({"ask": "look", "edits": [HIDE]})
    crossing = [one for one in reply["run"]["attentions"] if one["kind"] == "cross"]
    assert crossing
    for one in crossing:
        visible = numpy.frombuffer(
            blocks, "uint8", offset=one["visible"]["offset"], count=one["n_queries"] * one["n_keys"]
        )
        assert not visible.reshape(one["n_queries"], -1)[:, 3].any()


def test_questions_are_answered(session: Session, runner: TextGenerator) -> None:
    attention = session.runs[0].trace[CROSS]
    weights = attention.compute_weights(1)[0].detach().numpy()
    where = {"place": CROSS, "head": 1}

    def block(blocks: bytes, described: dict[str, Any]) -> Any:
        count = int(numpy.prod(described["shape"]))
        found = numpy.frombuffer(blocks, described["dtype"], count, described["offset"])
        return found.reshape(described["shape"])

    reply, blocks = session.ask({"ask": "row", **where, "query": 2})
    assert numpy.allclose(block(blocks, reply["row"]), weights[2], atol=1e-6)
    reply, blocks = session.ask({"ask": "tile", **where, "rows": [0, 3], "columns": [1, 3], "size": 8})
    assert numpy.allclose(block(blocks, reply["tile"]), weights[0:3, 1:3], atol=1e-6) and reply["pooled"] == [1, 1]
    reply, blocks = session.ask({"ask": "statistics", **where})
    assert numpy.allclose(block(blocks, reply["overview"])[0], weights, atol=1e-3) and reply["head"] == 1
    assert numpy.allclose(block(blocks, reply["per_query"]["largest"])[0], weights.max(axis=-1), atol=1e-6)
    reply, _ = session.ask({"ask": "explain", "position": 1})
    trace = session.runs[0].trace
    assert trace.target is not None
    expected = lens.explain(runner.module, trace.source, trace.target, 1)
    assert reply["explanation"]["p"] == pytest.approx(expected.probability)
    assert [one["key"] for one in reply["explanation"]["effects"]] == [one.position for one in expected.effects]
    reply, _ = session.ask({"ask": "look", "text": "key"})
    assert reply["run"]["axes"]["source"]["tokens"][:3] == ["k", "e", "y"] and session.line == "key"


WRONG: list[tuple[Any, str]] = [
    ("nothing", "expected an object"),
    ({"ask": "all"}, "expected one of look, explain, row, tile, statistics"),
    ({"ask": ["look"]}, "expected one of look, explain, row, tile, statistics"),
    ({"ask": "row", "place": "nowhere", "query": 0}, "no attention at 'nowhere'"),
    ({"ask": "row", "place": CROSS, "head": 44, "query": 0}, "it has heads 0 to 3"),
    ({"ask": "row", "place": CROSS, "query": 99}, "row 99 was requested"),
    ({"ask": "row", "place": CROSS, "query": "1"}, "expected a whole number"),
    ({"ask": "tile", "place": CROSS, "rows": [0, 99], "columns": [0, 1]}, "rows 0 to 99 were requested"),
    ({"ask": "tile", "place": CROSS, "rows": [0], "columns": [0, 1]}, "expected \\[first"),
    ({"ask": "explain", "position": 99}, "position=99 was given"),
    ({"ask": "explain", "position": 1, "run": 1}, "run 1 was requested"),
    ({"ask": "look", "text": " "}, "expected some text"),
    ({"ask": "look", "answer": "X"}, "holds X, which this model never gives"),
    ({"ask": "look", "edits": [{"kind": "knock_out", "keys": [9]}]}, "key 9 was given"),
    ({"ask": "look", "edits": [{"kind": "knock_out", "keys": [-1]}]}, "key -1 was given"),
    ({"ask": "look", "edits": [{"kind": "knock_out"}]}, "knock_out has the fields keys and may have"),
    (
        {"ask": "look", "edits": [{"kind": "knock_out", "keys": [1], "by": "me"}]},
        "knock_out has the fields keys and may have",
    ),
    ({"ask": "look", "edits": [{"kind": "knock_out", "keys": ["1"]}]}, "its keys is not what knock_out expects"),
    ({"ask": "look", "edits": ["knock_out"]}, "expected one of the kinds knock_out, ablate, swap_values"),
    ({"ask": "look", "edits": "knock_out"}, "expected a list"),
    ({"ask": "look", "edits": [{"kind": "ablate", "place": CROSS, "head": 4, "mode": "zero"}]}, "heads 0 to 3"),
    ({"ask": "look", "edits": [{"kind": "ablate", "place": CROSS, "head": 0, "mode": "off"}]}, "its mode is not"),
    ({"ask": "look", "edits": [{"kind": "ablate", "place": "x", "head": 0, "mode": "zero"}]}, "no attention at 'x'"),
]


def test_what_cannot_be_answered_is_told(session: Session) -> None:
    for question, said in WRONG:
        reply, blocks = session.ask(question)
        assert set(reply) == {"error"} and re.search(said, reply["error"]), reply
        assert blocks == b"" and session.line == "cat" and not session.runs[0].edits


def test_two_models_are_asked_by_their_numbers(runner: TextGenerator) -> None:
    session = Session([("pronunciation", runner), ("again", runner)], "cat")
    reply, _ = session.ask({"ask": "look", "run": 1, "edits": [HIDE]})
    assert reply["run"]["name"] == "again" and session.runs[1].edits and not session.runs[0].edits


# -- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(session: Session) -> Iterator[Server]:
    server = Server(session)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join(120)
    assert not thread.is_alive()


def request(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(server.origin.removeprefix("http://"), timeout=120)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    found = response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    connection.close()
    return found


def test_the_page_and_its_numbers_are_served_to_who_has_the_token(server: Server) -> None:
    own = f"?token={server.token}"
    status, body, headers = request(server, "GET", f"/{own}")
    assert status == 200 and b'data-qkv-host="serve"' in body and server.token.encode() in body
    assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"
    assert server.url == f"{server.origin}/{own}"
    status, body, headers = request(server, "GET", f"/look.js{own}")
    assert status == 200 and headers["content-type"].startswith("text/javascript") and len(body) > 10_000
    document = json.loads(request(server, "GET", f"/document{own}")[1])
    assert document["live"]
    one = document["runs"][0]["attentions"][0]["query"]
    size = 4 * int(numpy.prod(one["shape"]))
    status, body, _ = request(server, "GET", f"/blocks/{one['offset']}?size={size}&token={server.token}")
    query = numpy.frombuffer(body, "float32").reshape(one["shape"])
    assert numpy.array_equal(query, server.session.runs[0].trace["encoder.0.self_attention"].query[0].numpy())
    for path in (f"/blocks/0?size={10**15}&token=", "/blocks/x?size=1&token=", "/blocks/0?token=", "/nothing?token="):
        assert request(server, "GET", f"{path}{server.token}")[0] == 404
    question = json.dumps({"ask": "row", "place": CROSS, "query": 0}).encode()
    status, body, _ = request(server, "POST", "/ask", question, X_Qkv_Token=server.token)
    reply = json.loads(body)
    row = numpy.frombuffer(
        base64.b64decode(reply["blocks"]), "float32", reply["row"]["shape"][0], reply["row"]["offset"]
    )
    assert status == 200 and row.sum() == pytest.approx(1.0)
    status, body, _ = request(server, "POST", "/ask", b'{"ask": "x"}', X_Qkv_Token=server.token)
    assert status == 200 and "expected one of" in json.loads(body)["error"]


def test_everyone_else_is_refused(server: Server) -> None:
    token = server.token
    question = b'{"ask": "explain", "position": 1}'
    for path in ("/", "/document", "/look.js", "/blocks/0?size=4"):
        joint = "&" if "?" in path else "?"
        assert request(server, "GET", path)[0] == 403
        assert request(server, "GET", f"{path}{joint}token=guess")[0] == 403
        assert request(server, "GET", f"{path}{joint}token={token}", Host="evil.example")[0] == 403
        assert request(server, "GET", f"{path}{joint}token={token}", Origin="http://evil.example")[0] == 403
    assert request(server, "POST", "/ask", question)[0] == 403
    assert request(server, "POST", f"/ask?token={token}", question)[0] == 403
    assert request(server, "POST", "/ask", question, X_Qkv_Token="gu\xe9ss")[0] == 403
    assert request(server, "POST", "/ask", question, X_Qkv_Token=token, Host="evil.example:80")[0] == 403
    assert request(server, "POST", "/ask", question, X_Qkv_Token=token, Origin="null")[0] == 403
    assert request(server, "POST", "/ask", b"{", X_Qkv_Token=token)[0] == 400
    assert request(server, "POST", "/ask", b"[" * 100_000, X_Qkv_Token=token)[0] == 400
    assert request(server, "POST", "/other", question, X_Qkv_Token=token)[0] == 404
    assert request(server, "POST", "/ask", b" ", X_Qkv_Token=token, Content_Length=str(2**21))[0] == 413
    assert request(server, "PUT", "/ask", question, X_Qkv_Token=token)[0] == 501
    with pytest.raises(StorageError, match="choose another"):
        Server(server.session, int(server.origin.rpartition(":")[2]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_interrupted(number: signal.Signals) -> None:
    program = "from qkv.cli import main; main(['look', 'pronunciation', 'cat', '--serve'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "K AE1 T"
    assert process.stdout.readline().startswith("Look inside: http://127.0.0.1:")
    process.send_signal(number)
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0 and complaint == ""


def test_an_interrupt_in_a_collector_s_callback_is_not_lost() -> None:
    program = (
        "import gc, signal\n"
        "from qkv import view\n"
        "from qkv.cli import main\n"
        "run = view.Server.run\n"
        "def begin(server):\n"
        "    gc.callbacks.append(lambda *_: (gc.callbacks.clear(), signal.raise_signal(signal.SIGINT)))\n"
        "    gc.collect()\n"
        "    run(server)\n"
        "view.Server.run = begin\n"
        "main(['look', 'pronunciation', 'cat', '--serve'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""


# -- in a notebook ------------------------------------------------------------------------------------------------


def test_a_trace_is_shown_in_a_notebook_and_in_a_file(runner: TextGenerator, tmp_path: Path) -> None:
    trace = qkv.look(runner, "cat")
    page = qkv.show(trace)
    text = str(page)
    assert "<title>cat</title>" in text and 'data-qkv-host="file"' in text
    framed = re.fullmatch(r'<iframe srcdoc="([^"]*)" [^>]*></iframe>', page._repr_html_())
    assert (
        framed is not None
        and html.unescape(framed[1]) == text == html.unescape(trace._repr_html_())[16 : 16 + len(text)]
    )
    hidden = qkv.look(runner, "cat", edits=[qkv.knock_out("decoder.*.cross_attention", keys=[0])])
    path = qkv.show(trace, hidden, tmp_path / "both.html", title="two")
    written = path.read_text(encoding="utf-8")
    assert path == tmp_path / "both.html" and "<title>two</title>" in written and '"note":"K AE1 T; ' in written
    with pytest.raises(QkvError, match="0 runs were given to show"):
        qkv.show()


def test_a_widget_shows_and_answers(runner: TextGenerator) -> None:
    anywidget = pytest.importorskip("anywidget", reason="needs the extra notebook")
    widget = explore(runner, line="cat", names=["pronunciation"])
    assert isinstance(widget, anywidget.AnyWidget) and widget.document["title"] == "cat" and widget.document["live"]
    assert "mount" in widget._esm and len(widget.blocks) > 1000
    sent: list[tuple[Any, Any]] = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    widget._handle_custom_msg({"id": 7, "request": {"ask": "row", "place": CROSS, "query": 0}}, [])
    widget._handle_custom_msg({"id": 8, "request": {"ask": "x"}}, [])
    widget._handle_custom_msg("noise", [])
    (first, buffers), (second, none) = sent
    assert first["id"] == 7 and len(buffers[0]) >= 4 * first["reply"]["row"]["shape"][0]
    assert second["id"] == 8 and "expected one of" in second["reply"]["error"] and none is None


def test_without_anywidget_the_extra_is_named(runner: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qkv\[notebook\]'"):
        explore(runner, line="cat")
