"""`.bin` of llama2.c in its first version: seven numbers, then float32 tensors one after another.

Layout as llama2.c's `export.py` writes version 0, little-endian: dim, hidden_dim, n_layers, n_heads, n_kv_heads,
vocab_size and seq_len as i32 (vocab_size negative if the output matrix is not tied), then the tensors in the order of
`_tensors`. Nothing in the file identifies the format except a size that fits to the byte.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry

_HEADER_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MAX_LAYERS = 100_000  # more than any model has, and few enough to iterate over


def is_llama2c(head: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes that begins with `head` has this format, by its exact size."""
    return len(head) >= 28 and size == _compute_size(
        dict(zip(_HEADER_FIELDS, struct.unpack_from("<7i", head), strict=True))
    )


def read(path: Path) -> LazyWeights:
    """Map a llama2.c model: names as in Meta's Llama ("layers.0.attention.wq.weight"), float32, (outputs, inputs).

    Also "freqs_cos" and "freqs_sin", the tables of angles in the file. metadata: the seven numbers by name, and
    "shared_classifier". Raises CheckpointError if the sizes do not fit exactly.
    """
    cursor = Cursor(path)
    header = dict(zip(_HEADER_FIELDS, cursor.read_numbers("i", len(_HEADER_FIELDS), "the header"), strict=True))
    if _compute_size(header) != len(cursor.bytes):
        raise cursor.make_error(f"sizes {header}", f"numbers that make {len(cursor.bytes):,} bytes", offset=0)
    entries: dict[str, TensorEntry] = {}
    for name, count, shape in _iter_tensors(header):
        for layer in range(count):
            data = cursor.read_bytes(4 * count_elements(shape), name)
            entries[name.format(layer)] = TensorEntry(
                shape, functools.partial(view_as_tensor, data, torch.float32, shape)
            )
    cursor.require_end()
    shared = header["vocab_size"] > 0
    return LazyWeights(path, entries, header | {"vocab_size": abs(header["vocab_size"]), "shared_classifier": shared})


def _compute_size(header: dict[str, int]) -> int | None:
    small = (
        all(value > 0 for name, value in header.items() if name != "vocab_size") and header["n_layers"] <= _MAX_LAYERS
    )
    if not small or not header["vocab_size"] or header["dim"] % header["n_heads"]:
        return None
    return 28 + 4 * sum(count * count_elements(shape) for _, count, shape in _iter_tensors(header))


def _iter_tensors(header: dict[str, int]) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    dim, hidden, layers, heads, kv_heads, vocab, length = header.values()
    head = dim // heads
    keys = head * kv_heads
    yield "tok_embeddings.weight", 1, (abs(vocab), dim)
    yield "layers.{}.attention_norm.weight", layers, (dim,)
    yield "layers.{}.attention.wq.weight", layers, (dim, dim)
    yield "layers.{}.attention.wk.weight", layers, (keys, dim)
    yield "layers.{}.attention.wv.weight", layers, (keys, dim)
    yield "layers.{}.attention.wo.weight", layers, (dim, dim)
    yield "layers.{}.ffn_norm.weight", layers, (dim,)
    yield "layers.{}.feed_forward.w1.weight", layers, (hidden, dim)
    yield "layers.{}.feed_forward.w2.weight", layers, (dim, hidden)
    yield "layers.{}.feed_forward.w3.weight", layers, (hidden, dim)
    yield "norm.weight", 1, (dim,)
    yield "freqs_cos", 1, (length, head // 2)
    yield "freqs_sin", 1, (length, head // 2)
    if vocab < 0:
        yield "output.weight", 1, (abs(vocab), dim)
