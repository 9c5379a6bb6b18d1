"""Initialisers of an ONNX graph: its stored tensors, with torch's names for matrices that the export left anonymous.

The file is one protobuf message. Its raw tensors stay mapped: the package `onnx` parses a copy of the message without
them. Field numbers as in `onnx.proto`.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qkv.errors import MissingExtraError
from qkv.pretrained.weights.cursor import Cursor, count_elements, view_as_tensor
from qkv.pretrained.weights.lazy_weights import LazyWeights, TensorEntry, make_error

_GRAPH_FIELD, _INITIALIZER_FIELD, _RAW_DATA_FIELD = 7, 5, 9
_EXTERNAL_LOCATION = 1
_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
}


def read(path: Path) -> LazyWeights:
    """Map an ONNX file's initialisers under their names, and anonymous matrices under the names of their biases.

    The matrix of a MatMul or Gemm whose result is added to the bias `x.bias` is offered as `x.weight`, (outputs,
    inputs) as
    in torch's Linear, instead of under its own name ("onnx::MatMul_1965"), unless the file has an `x.weight`. metadata:
    "derived" (maps each such name to the one in the file), "producer", "opset" and the file's own properties. Tensors
    in
    the nodes themselves and in subgraphs are not read. Raises CheckpointError for a damaged file or data outside its
    folder, and MissingExtraError without the package `onnx`.
    """
    library, message = _import_onnx()
    cursor = Cursor(path)
    skeleton, spans = _strip_raw_data(cursor)
    try:
        model = library.ModelProto.FromString(skeleton)
    except message.DecodeError as error:
        raise make_error(path, f"not a whole ONNX file ({error})", "a protobuf message of onnx.proto") from error
    if any(isinstance(text, bytes) for text in _iter_texts(model)):  # protobuf returns text that is not UTF-8 as bytes
        raise make_error(path, "a name or a text that is not UTF-8", "UTF-8")
    if model.graph.sparse_initializer:
        raise make_error(path, "sparse initialisers", "dense ones", "Export the model again without sparsity.")
    entries: dict[str, TensorEntry] = {}
    files: dict[str, Cursor] = {}
    for proto, span in zip(model.graph.initializer, spans, strict=True):
        if not proto.name or proto.name in entries:
            raise make_error(path, f"no name or a second {proto.name!r} among its initialisers", "each name once")
        entries[proto.name] = _build_entry(cursor, library, proto, span, files)
    derived = _derive_names(model.graph, entries)
    entries = {name: entry for name, entry in entries.items() if name not in {old for old, _ in derived.values()}} | {
        name: _transpose_entry(entries[old]) if turned else entries[old] for name, (old, turned) in derived.items()
    }
    metadata = {item.key: item.value for item in model.metadata_props}
    metadata |= {"producer": model.producer_name, "opset": {item.domain: item.version for item in model.opset_import}}
    return LazyWeights(path, entries, metadata | {"derived": {name: old for name, (old, _) in derived.items()}})


def _import_onnx() -> tuple[Any, Any]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("google.protobuf.message")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "reading ONNX needs onnx, which is not installed; install it with: pip install 'qkv[onnx]'"
        ) from error


def _iter_texts(model: Any) -> Iterator[str | bytes]:
    """Yield every text of the message that is used here."""
    yield model.producer_name
    yield from (item.domain for item in model.opset_import)
    for pair in itertools.chain(model.metadata_props, *(proto.external_data for proto in model.graph.initializer)):
        yield from (pair.key, pair.value)
    yield from (proto.name for proto in model.graph.initializer)
    for node in model.graph.node:
        yield from (node.op_type, *node.input, *node.output, *(attribute.name for attribute in node.attribute))


def _read_varint(cursor: Cursor, description: str) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte: int = cursor.read_number("B", description)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise cursor.make_error(f"{description} of more than ten bytes", "a varint")


def _iter_fields(cursor: Cursor, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field up to byte `end`: its number, where it begins, where its content begins, where it ends."""
    while cursor.offset < end:
        start = cursor.offset
        tag = _read_varint(cursor, "a field's tag")
        content = cursor.offset
        match tag & 7:
            case 0:
                _read_varint(cursor, "a number")
            case 1:
                cursor.skip(8, "a number")
            case 2:
                size = _read_varint(cursor, "a field's length")
                content = cursor.skip(size, "a field")
            case 5:
                cursor.skip(4, "a number")
            case kind:
                raise cursor.make_error(f"a field of kind {kind}", "0, 1, 2 or 5 (protobuf)", offset=start)
        if cursor.offset > end:
            raise cursor.make_error("a field beyond its message's end", f"at most byte {end:,}", offset=start)
        stop = cursor.offset
        yield (tag >> 3 if tag & 7 == 2 else 0), start, content, stop
        cursor.offset = stop  # the caller may have read inside the field


def _strip_raw_data(cursor: Cursor) -> tuple[bytes, list[tuple[int, int] | None]]:
    """Return the message without the initialisers' raw bytes, and the position of these in the file."""
    spans: list[tuple[int, int] | None] = []

    def initialiser(start: int, end: int) -> bytes:
        span: list[tuple[int, int]] = []

        def raw(start: int, end: int) -> bytes:
            span.append((start, end))
            return b""

        message = _change_fields(cursor, start, end, _RAW_DATA_FIELD, raw)
        if len(span) > 1:
            raise cursor.make_error("two raw contents of one initialiser", "one", offset=span[1][0])
        spans.append(span[0] if span else None)
        return message

    def graph(start: int, end: int) -> bytes:
        graphs.append(start)
        return _change_fields(cursor, start, end, _INITIALIZER_FIELD, initialiser)

    graphs: list[int] = []
    skeleton = _change_fields(cursor, 0, len(cursor.bytes), _GRAPH_FIELD, graph)
    if len(graphs) != 1:
        raise cursor.make_error(f"{len(graphs)} graphs", "one", offset=0)
    return skeleton, spans


def _change_fields(cursor: Cursor, start: int, end: int, number: int, change: Callable[[int, int], bytes]) -> bytes:
    """Return the message between two bytes with every field of that number changed, or removed if nothing remains."""
    cursor.offset = start
    parts = []
    for field, begin, content, stop in _iter_fields(cursor, end):
        if field != number:
            parts.append(cursor.bytes[begin:stop].tobytes())
            continue
        changed = change(content, stop)
        if changed or number != _RAW_DATA_FIELD:
            parts.append(_encode_varint(number << 3 | 2) + _encode_varint(len(changed)) + changed)
    return b"".join(parts)


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _build_entry(
    cursor: Cursor, library: Any, proto: Any, span: tuple[int, int] | None, files: dict[str, Cursor]
) -> TensorEntry:
    shape = tuple(proto.dims)
    dtype = _DTYPES.get(proto.data_type)
    if dtype is None or min(shape, default=0) < 0:
        raise make_error(
            cursor.path, f"{proto.name!r} has the type {proto.data_type} and shape {shape}", "plain numbers"
        )
    if proto.data_location == _EXTERNAL_LOCATION:
        data = _read_external_data(cursor.path, proto, files)
    elif span is not None:
        data = cursor.bytes[slice(*span)]
    else:
        try:
            data = np.array(library.numpy_helper.to_array(proto)).reshape(-1).view(np.uint8)
        except (ValueError, TypeError) as error:
            raise make_error(cursor.path, f"{proto.name!r} of shape {shape} ({error})", "as many numbers") from error
    if len(data) != count_elements(shape) * dtype.itemsize:
        raise make_error(
            cursor.path,
            f"{proto.name!r} of shape {shape} has {len(data):,} bytes",
            f"{count_elements(shape) * dtype.itemsize:,} ({dtype})",
            offset=span[0] if span else None,
        )
    return TensorEntry(shape, functools.partial(view_as_tensor, data, dtype, shape))


def _read_external_data(path: Path, proto: Any, files: dict[str, Cursor]) -> NDArray[np.uint8]:
    fields = {item.key: item.value for item in proto.external_data}
    location = fields.get("location", "")
    # As text, without following links: a cache may keep the files elsewhere and link to them.
    place = PurePosixPath(location)
    if not location or place.is_absolute() or ".." in place.parts or "\\" in location or ":" in location:
        raise make_error(path, f"{proto.name!r} is said to lie in {location!r}", "a file in the model's own folder")
    if location not in files:
        files[location] = Cursor(path.parent / place)
    cursor = files[location]
    try:
        cursor.offset = int(fields.get("offset", "0"))
        size = int(fields["length"]) if "length" in fields else cursor.num_bytes_left
    except ValueError as error:
        raise make_error(path, f"{proto.name!r} lies at {fields}", "numbers for offset and length") from error
    if min(cursor.offset, size, cursor.num_bytes_left) < 0:
        raise make_error(
            cursor.path, f"{proto.name!r} is said to lie at {fields}", f"a place within {len(cursor.bytes):,} bytes"
        )
    return cursor.read_bytes(size, f"the data of {proto.name!r}")


def _derive_names(graph: Any, entries: dict[str, TensorEntry]) -> dict[str, tuple[str, bool]]:
    """Derive names for matrices from their biases; return the name in the file and whether to transpose the matrix."""
    products: dict[str, tuple[str, bool]] = {}  # a product's output -> its matrix, and whether to transpose that
    pairs: list[tuple[str, str, bool]] = []
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and len(node.input) > 1 and node.input[1] in entries and node.output:
            turned = not any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            products[node.output[0]] = (node.input[1], turned)
            if len(node.input) > 2:
                pairs.append((node.input[2], node.input[1], turned))
    for node in graph.node:
        if node.op_type == "Add" and len(node.input) == 2:
            for bias, product in (tuple(node.input), tuple(node.input)[::-1]):
                if product in products:
                    pairs.append((bias, *products[product]))
    derived: dict[str, tuple[str, bool]] = {}
    ambiguous: set[str] = set()
    for bias, matrix, turned in pairs:
        name = bias.removesuffix(".bias") + ".weight"
        if bias.endswith(".bias") and bias in entries and name not in entries and len(entries[matrix].shape) == 2:
            if derived.setdefault(name, (matrix, turned)) != (matrix, turned):
                ambiguous.add(name)  # a bias of two matrices names neither
    return {name: found for name, found in derived.items() if name not in ambiguous}


def _transpose_entry(entry: TensorEntry) -> TensorEntry:
    return TensorEntry(entry.shape[::-1], lambda: entry.load().T)
