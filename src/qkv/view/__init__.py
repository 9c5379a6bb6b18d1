"""Showing what the lens saw: in a file, over HTTP to one reader, in a notebook.

write_html(build_run(model, "colonel"), "look.html")      one file
show(build_run(model, "colonel"))                   in a notebook
explore(model, line="colonel")                 in a notebook, and what is asked on the page is answered
"""

from __future__ import annotations

from qkv.view.axes import Axis
from qkv.view.builder import build_run, encode_long_text
from qkv.view.document import Document, encode_document
from qkv.view.html import write_html
from qkv.view.notebook import explore, show, show_traces
from qkv.view.returns_plot import plot_returns
from qkv.view.run import Hypothesis, Run
from qkv.view.server import Server
from qkv.view.session import Session, build_document
from qkv.view.words_plot import plot_words

__all__ = [
    "Axis",
    "Document",
    "Hypothesis",
    "Run",
    "Server",
    "Session",
    "plot_returns",
    "encode_document",
    "plot_words",
    "explore",
    "encode_long_text",
    "write_html",
    "build_run",
    "show",
    "show_traces",
    "build_document",
]
