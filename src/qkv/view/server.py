"""The page over HTTP, for one reader on this machine: what it asks is answered by the model that made it.

Only the loopback address listens. Every address needs the token that was made when serving began, so that no other
page in the reader's browser can read anything; a request for another host, or from another page, is refused (DNS
rebinding and cross-site requests).

    GET /?token=T   GET /look.js?token=T   GET /document?token=T   GET /blocks/AT?size=BYTES&token=T
    POST /ask       with the header X-Qkv-Token: T; a JSON question, a JSON answer
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qkv.errors import StorageError
from qkv.view import html
from qkv.view.session import Session

HOST = "127.0.0.1"

_MAX_REQUEST_BYTES = 2**20  # bytes


class Server:
    """A page that listens; `run` answers until it is stopped."""

    def __init__(self, session: Session, port: int = 0) -> None:
        """port: 0 takes any that is free. Raises StorageError for one that is taken or not allowed."""
        self.token = secrets.token_urlsafe(24)
        self.session = session
        self.document = session.build_document()
        try:
            self._server = _PageHTTPServer((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise StorageError(
                f"port {port} cannot be listened on: {error}; choose another, or leave it out for any that is free"
            ) from error
        self._server.page = self

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"{self.origin}/?token={self.token}"

    @property
    def origin(self) -> str:
        """The scheme, host and port."""
        return f"http://{HOST}:{self._server.server_address[1]}"

    def run(self) -> None:
        """Answer until `stop` is called or KeyboardInterrupt is raised."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End `run`, from another thread; one that has not begun ends at once."""
        self._server.shutdown()


class _PageHTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    page: Server


class _Handler(BaseHTTPRequestHandler):
    server: _PageHTTPServer
    server_version, sys_version = "qkv", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        page, address = self.server.page, urlsplit(self.path)
        query = parse_qs(address.query)
        if not self._is_allowed((query.get("token") or [""])[0]):
            return
        blocks = page.document.blocks
        if address.path == "/":
            title = str(page.document.data["title"])
            self._send(html.render_live_html(title, page.token).encode(), "text/html; charset=utf-8")
        elif address.path == "/look.js":
            self._send(html.read_script().encode(), "text/javascript; charset=utf-8")
        elif address.path == "/document":
            self._send(page.document.json.encode(), "application/json")
        elif address.path.startswith("/blocks/"):
            span = _parse_span(address.path.removeprefix("/blocks/"), (query.get("size") or [""])[0], len(blocks))
            if span is None:
                self._refuse(HTTPStatus.NOT_FOUND, "there are no such blocks")
            else:
                self._send(blocks[slice(*span)], "application/octet-stream")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def do_POST(self) -> None:
        if not self._is_allowed(self.headers.get("X-Qkv-Token", "")):
            return
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != "/ask":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        elif not length.isdecimal() or int(length) > _MAX_REQUEST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the question is too long")
        else:
            try:
                question = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                self._refuse(HTTPStatus.BAD_REQUEST, "the question is no JSON")
                return
            reply, blocks = self.server.page.session.ask(question)
            self._send(encode_reply(reply, blocks), "application/json")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is the user's."""

    def _is_allowed(self, token: str) -> bool:
        """Whether a request comes from the page itself, or else a refusal."""
        origin = self.server.page.origin
        if self.headers.get("Host") not in (origin.removeprefix("http://"), f"localhost:{origin.rpartition(':')[2]}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this page answers under its own address alone")
        elif self.headers.get("Origin") not in (None, f"http://{self.headers.get('Host')}"):
            self._refuse(HTTPStatus.FORBIDDEN, "another page asked")
        elif not hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the whole address that qkv printed, with its token")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # what else it sent was not read
        self._send(f"{reason}\n".encode(), "text/plain; charset=utf-8", status)

    def _send(self, body: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the reader went away
            self.close_connection = True


def encode_reply(reply: dict[str, Any], blocks: bytes) -> bytes:
    """A reply with its blocks, as one JSON."""
    whole = {**reply, "blocks": base64.b64encode(blocks).decode()} if blocks else reply
    return json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()


def _parse_span(at: str, size: str, length: int) -> tuple[int, int] | None:
    if not (at.isdecimal() and size.isdecimal()) or len(at) > 18 or len(size) > 18:
        return None
    begin, end = int(at), int(at) + int(size)
    return (begin, end) if end <= length else None
