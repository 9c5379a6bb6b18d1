"""The page over HTTP, for one reader on this machine; the model behind it answers the requests of the page.

The server listens on the loopback address only. Every URL needs the token that was generated at the start, so that no
other page in the reader's browser can read anything. A request for another host or from another page is refused,
against DNS rebinding and cross-site requests.

    GET /?token=T   GET /look.js?token=T   GET /document?token=T   GET /blocks/AT?size=BYTES&token=T
    POST /ask       with the header X-Qkv-Token: T; a JSON request, a JSON reply
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

_MAX_REQUEST_BYTES = 2**20


class Server:
    """A server of one page; `run` answers requests until it is stopped."""

    def __init__(self, session: Session, port: int = 0) -> None:
        """Start listening. port: 0 takes any free one. Raises StorageError for a port that is taken or not allowed."""
        self.token = secrets.token_urlsafe(24)
        self.session = session
        self.document = session.build_document()
        try:
            self._server = _PageHTTPServer((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise StorageError(
                f"cannot listen on port {port}: {error}; choose another, or leave it out for any free one"
            ) from error
        self._server.page = self

    @property
    def url(self) -> str:
        """The URL to open in a browser."""
        return f"{self.origin}/?token={self.token}"

    @property
    def origin(self) -> str:
        """The scheme, host and port."""
        return f"http://{HOST}:{self._server.server_address[1]}"

    def run(self) -> None:
        """Answer requests until `stop` is called or KeyboardInterrupt is raised."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End `run`, from another thread; a `run` that starts later ends at once."""
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
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
        else:
            try:
                request = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                self._refuse(HTTPStatus.BAD_REQUEST, "the request is not JSON")
                return
            reply, blocks = self.server.page.session.ask(request)
            self._send(encode_reply(reply, blocks), "application/json")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: the terminal belongs to the user."""

    def _is_allowed(self, token: str) -> bool:
        """Return whether a request comes from the page itself; others are refused."""
        origin = self.server.page.origin
        if self.headers.get("Host") not in (origin.removeprefix("http://"), f"localhost:{origin.rpartition(':')[2]}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this page is served under its own address only")
        elif self.headers.get("Origin") not in (None, f"http://{self.headers.get('Host')}"):
            self._refuse(HTTPStatus.FORBIDDEN, "the request came from another page")
        elif not hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "open the whole URL that qkv printed, with its token")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the rest of the request was not read
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
        except (BrokenPipeError, ConnectionResetError):  # the reader closed the connection
            self.close_connection = True


def encode_reply(reply: dict[str, Any], blocks: bytes) -> bytes:
    """Return a reply with its blocks, as one JSON object."""
    whole = {**reply, "blocks": base64.b64encode(blocks).decode()} if blocks else reply
    return json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()


def _parse_span(at: str, size: str, length: int) -> tuple[int, int] | None:
    if not (at.isdecimal() and size.isdecimal()) or len(at) > 18 or len(size) > 18:
        return None
    begin, end = int(at), int(at) + int(size)
    return (begin, end) if end <= length else None
