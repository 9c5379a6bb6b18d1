"""The page that shows a trace: in one file, in a notebook, or served to a browser on this machine.

write_html(build_run(model, "knight"), "look.html")     one file
show(trace)                                             in a notebook
explore(model, line="knight")                           in a notebook, with a live model for changes
Server(Session([("pronunciation", model)], "knight"))   over HTTP, with a live model for changes
"""

from __future__ import annotations

from qkv.view.axes import Axis
from qkv.view.builder import build_run, encode_long_text
from qkv.view.document import Document, build_document
from qkv.view.html import write_html
from qkv.view.notebook import explore, show
from qkv.view.returns_plot import plot_returns
from qkv.view.run import Hypothesis, Run
from qkv.view.server import Server
from qkv.view.session import Session
from qkv.view.words_plot import plot_words

__all__ = [
    "Axis",
    "Document",
    "Hypothesis",
    "Run",
    "Server",
    "Session",
    "build_document",
    "build_run",
    "encode_long_text",
    "explore",
    "plot_returns",
    "plot_words",
    "show",
    "write_html",
]
