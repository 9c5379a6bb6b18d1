"""Showing what the lens saw: in a file, over HTTP to one reader, in a notebook.

page(seen(runner, "colonel"), "look.html")      one file
show(seen(runner, "colonel"))                   in a notebook
explore(runner, line="colonel")                 in a notebook, and what is asked on the page is answered
"""

from __future__ import annotations

from qkv.view.asking import Session, shown
from qkv.view.axes import Axis
from qkv.view.chart import achieved
from qkv.view.document import Document, document
from qkv.view.looking import long_text, seen
from qkv.view.notebook import explore, show
from qkv.view.run import Hypothesis, Run
from qkv.view.serving import Server
from qkv.view.sound import draw_sound
from qkv.view.writing import page

__all__ = [
    "Axis",
    "Document",
    "Hypothesis",
    "Run",
    "Server",
    "Session",
    "achieved",
    "document",
    "draw_sound",
    "explore",
    "long_text",
    "page",
    "seen",
    "show",
    "shown",
]
