"""See-through Transformers: train, run and look inside, on one implementation.

import qkv

model = qkv.load("pronunciation")
model.predict("knight").text
trace = qkv.look(model, "knight")
trace["decoder.2.cross_attention"].weights
qkv.show(trace, "look.html")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkv.lazy import export_lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qkv import lens, presets, spec
    from qkv.api import look, show
    from qkv.attention import attend
    from qkv.lens import Compose, Trace, ablate, knock_out, patch, swap_values
    from qkv.mask import Mask
    from qkv.models import build
    from qkv.tasks.base import Answer, TaskModel
    from qkv.tasks.evaluator import evaluate
    from qkv.tasks.fitting import train
    from qkv.tasks.loader import load

_EXPORTS = {
    "Answer": "qkv.tasks.base",
    "Compose": "qkv.lens",
    "Mask": "qkv.mask",
    "TaskModel": "qkv.tasks.base",
    "Trace": "qkv.lens",
    "ablate": "qkv.lens",
    "attend": "qkv.attention",
    "build": "qkv.models",
    "evaluate": "qkv.tasks.evaluator",
    "knock_out": "qkv.lens",
    "lens": "qkv.lens",
    "load": "qkv.tasks.loader",
    "look": "qkv.api",
    "patch": "qkv.lens",
    "presets": "qkv.presets",
    "show": "qkv.api",
    "spec": "qkv.spec",
    "swap_values": "qkv.lens",
    "train": "qkv.tasks.fitting",
}

__all__ = [
    "Answer",
    "Compose",
    "Mask",
    "TaskModel",
    "Trace",
    "__version__",
    "ablate",
    "attend",
    "build",
    "evaluate",
    "knock_out",
    "lens",
    "load",
    "look",
    "patch",
    "presets",
    "show",
    "spec",
    "swap_values",
    "train",
]


__getattr__, __dir__ = export_lazily(__name__, _EXPORTS)
