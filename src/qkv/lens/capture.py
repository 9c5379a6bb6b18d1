"""Captures: a trace in one file, which opens without its model and verifies itself.

The file has the safetensors layout (a JSON header, then raw little-endian blocks), ends in .qkv by convention, and
contains query, key, value, context and the score terms of every attention: linear in length, and sufficient for every
score and weight. The header's "qkv" describes the blocks, names the tokens, claims how far weights @ value is from
the context (`Trace.certify`), and has a checksum of itself and all blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qkv.errors import CheckpointError, QkvError
from qkv.files import atomic_write, parse_json
from qkv.lens.recorder import Call
from qkv.lens.trace import AttentionTrace, Trace
from qkv.mask import Mask
from qkv.score_terms import ScoreTerms

FORMAT = 1

_SITES = ("query", "key", "value", "context")
_SCALAR_TERMS = ("scale", "softcap")
_TOLERANCE = 1e-5  # tolerance beyond the claim: another machine adds in another order


@dataclass(frozen=True)
class Capture:
    """A trace that was read from a file. tokens: the names of the source's and the target's tokens, if they were
    given."""

    trace: Trace
    source_tokens: tuple[str, ...] | None
    target_tokens: tuple[str, ...] | None
    max_errors: Mapping[str, Tensor]
    """The largest |weights @ value - context| by place and head, computed when the file was opened."""


@dataclass(frozen=True)
class _AdditiveScore:
    """The score of Bahdanau et al. 2015, appendix A.1.2, whose vector is part of the capture."""

    vector: Tensor

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(query.unsqueeze(3) + key.unsqueeze(2)) @ self.vector


def write_capture(
    trace: Trace,
    path: str | Path,
    *,
    source_tokens: Sequence[str] | None = None,
    target_tokens: Sequence[str] | None = None,
) -> None:
    """Write a trace's attentions, its logits and its tokens.

    Raises StorageError if the file cannot be written (an existing file stays unchanged), and QkvError for a score
    function
    that a file cannot represent.
    """
    blocks = _TensorBlocks()
    description = {
        "format": FORMAT,
        "places": {
            one.place: {
                "calls": [_describe_call(call, blocks, one.place) for call in one.calls],
                "output_weight": blocks.add(one.output_weight),
            }
            for one in trace
        },
        "inputs": {name: blocks.add(getattr(trace, name)) for name in ("logits", "source", "target")},
        "tokens": {"source": _to_list(source_tokens), "target": _to_list(target_tokens)},
        "claims": {place: worst.tolist() for place, worst in trace.certify().items()},
    }
    header = {**description, "sha256": _compute_digest(description, blocks.tensors)}
    with atomic_write(Path(path)) as part:
        save_file(blocks.tensors, part, {"qkv": json.dumps(header, ensure_ascii=False)})


def read_capture(path: str | Path, *, certify: bool = True) -> Capture:
    """Read a capture and verify its checksum, and that its weights reproduce its contexts as closely as it claims.

    certify=False skips the latter, whose time grows with the square of the length.
    Raises CheckpointError for a file that is truncated, altered, not a capture, or not as it claims.
    """
    header, tensors = _read(Path(path))
    try:
        attentions = {}
        for place, description in header["places"].items():
            calls = [_build_call(one, tensors) for one in description["calls"]]
            attentions[place] = AttentionTrace(place, calls, _get_block(tensors, description["output_weight"]))
        inputs = {name: _get_block(tensors, block) for name, block in header["inputs"].items()}
        trace = Trace({place: list(one.calls) for place, one in attentions.items()}, attentions, **inputs)  # type: ignore[arg-type]
        tokens = {side: None if own is None else tuple(own) for side, own in header["tokens"].items()}
        claims = {place: torch.tensor(worst, dtype=torch.float64) for place, worst in header["claims"].items()}
        if set(claims) != set(attentions):
            raise ValueError("claims are not about the places")
        certified = trace.certify() if certify else claims
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is described in a way that does not fit its blocks: {error!r}; {_DAMAGED}"
        ) from error
    for place, worst in certified.items():
        wrong = torch.isnan(worst) | (worst > 2 * claims[place] + _TOLERANCE)
        if bool(wrong.any()):
            head = int(wrong.nonzero()[0])
            raise CheckpointError(
                f"{path}: {place} head {head} claims that its weights give its context to {claims[place][head]:.1g}, "
                f"but the error is {worst[head]:.1g}; {_DAMAGED}"
            )
    return Capture(trace, tokens["source"], tokens["target"], certified)


_DAMAGED = "it is damaged or was altered: write it again from the model, or copy it again"


class _TensorBlocks:
    """The tensors of a file, each stored once however often it is used."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._kept: list[Tensor] = []  # so that no address is reused

    def add(self, tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in self._names:
            self._kept.append(tensor)
            self._names[key] = name = str(len(self._names))
            self.tensors[name] = tensor.cpu().contiguous().clone()
        return self._names[key]


def _describe_call(call: Call, blocks: _TensorBlocks, place: str) -> dict[str, Any]:
    description: dict[str, Any] = {site: blocks.add(call.get_full(site)) for site in _SITES}
    description["keys"] = call["key"].shape[2]
    terms = call.score_terms
    mask, score = terms.mask, terms.score
    description |= {name: getattr(terms, name) for name in _SCALAR_TERMS}
    description |= {name: blocks.add(getattr(terms, name)) for name in ("bias", "sinks")}
    if isinstance(mask, Mask):
        description["mask"] = {
            "causal": mask.causal,
            "window": mask.window,
            "past": blocks.add(mask.past) if isinstance(mask.past, Tensor) else mask.past,
            "keys": blocks.add(mask.key_mask),
            "allowed": blocks.add(mask.allowed),
        }
        description["mask"]["documents"] = (
            None if mask.documents is None else [blocks.add(one) for one in mask.documents]
        )
    else:
        description["mask"] = blocks.add(mask)
    vector = (
        score.vector if isinstance(score, _AdditiveScore) else getattr(getattr(score, "__self__", None), "vector", None)
    )
    if score is not None and vector is None:
        raise QkvError(f"{place}: its scores come from a custom function, which a file cannot represent")
    description["additive"] = blocks.add(vector)
    return description


def _build_call(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Call:
    call = Call()
    for site in _SITES:
        block = tensors[description[site]]
        call.record(site, block[:, :, : description["keys"]] if site in ("key", "value") else block, None)
    mask = description["mask"]
    if isinstance(mask, dict):
        documents = mask["documents"] and (tensors[mask["documents"][0]], tensors[mask["documents"][1]])
        rule: Mask | Tensor | None = Mask(
            causal=bool(mask["causal"]),
            window=tuple(mask["window"]) if isinstance(mask["window"], list) else mask["window"],
            past=tensors[mask["past"]] if isinstance(mask["past"], str) else int(mask["past"]),
            key_mask=_get_block(tensors, mask["keys"]),
            documents=documents,
            allowed=_get_block(tensors, mask.get("allowed")),
        )
    else:
        rule = _get_block(tensors, mask)
    vector = _get_block(tensors, description["additive"])
    call.recorded_terms = ScoreTerms(
        mask=rule,
        bias=_get_block(tensors, description["bias"]),
        sinks=_get_block(tensors, description["sinks"]),
        score=None if vector is None else _AdditiveScore(vector),
        **{name: description[name] for name in _SCALAR_TERMS},
    )
    return call


def _get_block(tensors: Mapping[str, Tensor], name: str | None) -> Tensor | None:
    return None if name is None else tensors[name]


def _to_list(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _compute_digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of the description and of the name, type, shape and bytes of every block."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it has no other iterator)
        header = parse_json(metadata["qkv"])
        digest = header.pop("sha256")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_DAMAGED}") from error
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a capture: it lacks the description of one; give a .qkv file") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {header.get('format')!r}; this qkv reads {FORMAT}: upgrade it")
    if digest != _compute_digest(header, tensors):
        raise CheckpointError(f"{path} does not have the checksum that it names; {_DAMAGED}")
    return header, tensors
