"""See-through Transformers: train, run and look inside, on one implementation.

import qkv

runner = qkv.load("pronunciation")
[[answer]] = runner.predict(["colonel"])
looked = runner.look("colonel")
looked.trace["decoder.2.cross_attention"].weights()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qkv.attention import attend
    from qkv.lens import look
    from qkv.models import build
    from qkv.tasks import load, train

__all__ = ["__version__", "attend", "build", "load", "look", "train"]

_EXPORTS = {
    "attend": "qkv.attention",
    "build": "qkv.models",
    "load": "qkv.tasks",
    "look": "qkv.lens",
    "train": "qkv.tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:  # torch takes seconds to import, so nothing does before it is used
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
