"""Files of published weights, of eight formats, as one lazily read mapping from names to tensors."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

from qkv.errors import CheckpointError
from qkv.pretrained.weights import ctranslate2, gguf, llama2c, marian, npz, onnx, pickle, safetensors, shards
from qkv.pretrained.weights.cursor import map_file
from qkv.pretrained.weights.lazy_weights import LazyWeights, UnknownTensorError

__all__ = ["UnknownTensorError", "LazyWeights", "read"]

_WEIGHT_PATTERNS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "*.safetensors",
    "*.gguf",
    "model.bin",
    "*.npz",
    "*.onnx",
)
_PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "*.pt", "*.pth")
_SUPPORTED_FORMATS = (
    "safetensors (also an index of its parts), GGUF, CTranslate2's model.bin, Marian's .bin and .npz, NumPy's .npz, "
    "ONNX, llama2.c's .bin, and with allow_pickle=True files of torch.save"
)


def read(path: str | Path, *, allow_pickle: bool = False, keep_quantized: bool = False) -> LazyWeights:
    """Open published weights: a file of any supported format, or a folder with one; the content determines the format.

    In a folder, model.safetensors or the index of its shards comes first; otherwise there must be exactly one file.
    Files of torch.save are pickles: they are opened only with `allow_pickle=True`, and then by torch's restricted
    reader.
    keep_quantized: whether matrices in GGUF's simple blocks stay `QuantizedTensor`s instead of being dequantised.
    Raises CheckpointError for a file that is missing, damaged, of an unknown format, or a pickle without
    `allow_pickle`, and MissingExtraError if its library is not installed (GGUF, ONNX).
    """
    path = Path(path)
    if path.is_dir():
        path = _find_weights_file(path, allow_pickle)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file or folder. Expected {_SUPPORTED_FORMATS}: check the path."
        )
    if path.name.endswith(shards.INDEX_SUFFIX):
        return shards.read(path, lambda part: _select_reader(part, allow_pickle, keep_quantized)(part))
    return _select_reader(path, allow_pickle, keep_quantized)(path)


def _find_weights_file(folder: Path, allow_pickle: bool) -> Path:
    for pattern in _WEIGHT_PATTERNS + _PICKLE_PATTERNS * allow_pickle:
        found = sorted(file for file in folder.glob(pattern) if file.is_file())
        if len(found) > 1:
            raise CheckpointError(
                f"{folder} holds {len(found)} files {pattern}: {', '.join(file.name for file in found)}. "
                "Expected one: give the path of the file."
            )
        if found:
            return found[0]
    pickles = [file for pattern in _PICKLE_PATTERNS for file in sorted(folder.glob(pattern))]
    if pickles:
        raise _pickle_error(pickles[0])
    raise CheckpointError(
        f"{folder} holds no weights. Expected {_SUPPORTED_FORMATS}: name the file, or another folder."
    )


def _pickle_error(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a file of torch.save, which is a pickle. Expected a file without code, such as safetensors: "
        "fetch that one, or, if you trust who made this, open it with allow_pickle=True (--allow-pickle on the "
        "command line)."
    )


def _select_reader(path: Path, allow_pickle: bool, keep_quantized: bool) -> Callable[[Path], LazyWeights]:
    """Return the reader for a file, by its first bytes, its size and, for a zip archive, its contents."""
    view = map_file(path)
    head, size = view[:64], len(view)
    first = int.from_bytes(head[:8], "little")
    if head[:4] == b"GGUF":
        return functools.partial(gguf.read, keep_quantized=keep_quantized)
    if head[:4] == b"PK\3\4" and view[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy"):
        return npz.read  # the length of the first member's name is at byte 26, the name at byte 30
    if head[:4] == b"PK\3\4" or re.match(rb"\x80[\x02-\x05]", head):
        if not allow_pickle:
            raise _pickle_error(path)
        return pickle.read
    if head[8:9] == b"{" and first > 1:
        return safetensors.read
    if llama2c.is_llama2c(head, size):
        return llama2c.read
    if first == 1:
        return marian.read
    if re.match(rb"[\x01-\x1f]\0\0\0..[ -~]+", head, re.DOTALL):
        return ctranslate2.read
    if re.match(rb"\x08[\x01-\x1f][\x08-\xff]", head) or path.suffix == ".onnx":
        return onnx.read
    raise CheckpointError(
        f"{path} begins with the bytes {head[:16].hex(' ')}. Expected {_SUPPORTED_FORMATS}: check where it comes from."
    )
