"""Differences between two specs in words: design choices one by one, and sizes apart from them. Needs no torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qkv import spec


@dataclass(frozen=True)
class SpecChange:
    """One difference between two specs."""

    name: str
    before: str
    after: str


def compare_designs(before: spec.Spec, after: spec.Spec) -> list[SpecChange]:
    """Compare the design choices of two specs, e.g. positions: learned -> rotary."""
    return _diff(describe_design(before), describe_design(after))


def compare_sizes(before: spec.Spec, after: spec.Spec) -> list[SpecChange]:
    """Compare the sizes of two specs, e.g. d_model: 768 -> 4096."""
    return _diff(describe_sizes(before), describe_sizes(after))


def describe_design(model_spec: spec.Spec) -> dict[str, str]:
    """Describe in words every choice of a spec except its sizes, by topic."""
    if isinstance(model_spec, spec.Recurrent):
        read = _describe_input("source", model_spec.source) | _describe_input("target", model_spec.target)
        return {"kind": "recurrent"} | _describe_plain_fields(model_spec) | read | _describe_head(model_spec.head)
    if isinstance(model_spec, spec.DualEncoder):
        return {"kind": "two encoders, compared"} | _describe_dual_encoder(model_spec, describe_design)
    kinds = {(True, True): "encoder-decoder", (False, True): "decoder alone", (True, False): "encoder alone"}
    design = {"kind": kinds[model_spec.encoder is not None, model_spec.decoder is not None]}
    stacks = [stack for stack in (model_spec.encoder, model_spec.decoder) if stack is not None]
    for name, stack in (("encoder", model_spec.encoder), ("decoder", model_spec.decoder)):
        if stack is not None:
            # a model with one stack needs no prefix
            design |= {
                f"{name}: {what}" if len(stacks) == 2 else what: words for what, words in _describe_stack(stack).items()
            }
    if len(stacks) == 2:
        design["source and target vectors"] = "shared" if model_spec.shared_embedding else "apart"
        second_head = model_spec.encoder_head
        design["the encoder's own answer"] = "none" if second_head is None else f"labels{_describe_fields(second_head)}"
    return design | _describe_head(model_spec.head)


def describe_sizes(model_spec: spec.Spec) -> dict[str, str]:
    """List every number of a spec that is a size."""
    if isinstance(model_spec, spec.Recurrent):
        return {
            "d_model": str(model_spec.d_model),
            "layers": str(model_spec.layers),
            "source vocabulary": f"{model_spec.source.vocab:,}",
            "target vocabulary": f"{model_spec.target.vocab:,}",
        }
    if isinstance(model_spec, spec.DualEncoder):
        return _describe_dual_encoder(model_spec, describe_sizes)
    sizes: dict[str, str] = {}
    for name, stack in (("encoder", model_spec.encoder), ("decoder", model_spec.decoder)):
        if stack is not None:
            alone = model_spec.encoder is None or model_spec.decoder is None
            sizes |= {
                what if alone else f"{name}: {what}": number for what, number in _describe_stack_sizes(stack).items()
            }
    for what in ("count", "width"):
        if (number := getattr(model_spec.head, what, None)) is not None:
            sizes[f"answer: {what}"] = str(number)
    if model_spec.encoder_head is not None:
        sizes["the encoder's own answer: count"] = str(model_spec.encoder_head.count)
    return sizes


def _describe_dual_encoder(
    model_spec: spec.DualEncoder, describe: Callable[[spec.Spec], dict[str, str]]
) -> dict[str, str]:
    towers = (("source", model_spec.source), ("target", model_spec.target))
    return {f"{name}: {what}": words for name, tower in towers for what, words in describe(tower).items()}


def _diff(before: dict[str, str], after: dict[str, str]) -> list[SpecChange]:
    names = dict.fromkeys((*before, *after))
    pairs = ((name, before.get(name, "none"), after.get(name, "none")) for name in names)
    return [SpecChange(name, one, other) for name, one, other in pairs if one != other]


_SIZE_FIELDS = ("d_model", "vocab", "width", "length", "heads", "d_key", "d_value", "d_ff", "count", "channels", "size")


def _describe_stack_sizes(stack: spec.Stack) -> dict[str, str]:
    blocks = stack.blocks
    attentions = [block.self_attention for block in blocks]
    sizes = {
        "d_model": str(stack.d_model),
        "blocks": str(len(blocks)),
        "heads": _group_blocks(attentions, lambda one: getattr(one, "heads", None)),
        "kv_heads": _group_blocks(
            attentions, lambda one: getattr(one, "kv_heads", None) or getattr(one, "heads", None)
        ),
        "d_key": _group_blocks(attentions, lambda one: getattr(one, "d_key", None)),
        "d_value": _group_blocks(attentions, lambda one: getattr(one, "d_value", None) or getattr(one, "d_key", None)),
        "d_ff": _group_blocks(blocks, lambda block: _get_feed_forward(block).d_ff),
    }
    if any(isinstance(block.feed_forward, spec.Experts) for block in blocks):
        sizes["experts"] = _group_blocks(blocks, lambda block: getattr(block.feed_forward, "count", "none"))
    crossing = [block.cross_attention for block in blocks if block.cross_attention is not None]
    if crossing:
        sizes["cross-attention: heads"] = _group_blocks(crossing, lambda one: f"{one.heads} of {one.d_key}")
    for name, node in (("", stack.input), ("positions: ", stack.positions), ("segments: ", _get_segments(stack.input))):
        for field in dataclasses.fields(node) if node is not None else ():
            value = getattr(node, field.name)
            if field.name in _SIZE_FIELDS and value is not None:
                sizes[name + field.name] = f"{value:,}" if isinstance(value, int) else str(value)
    return sizes


def _describe_stack(stack: spec.Stack) -> dict[str, str]:
    blocks = stack.blocks
    description = _describe_input("reads", stack.input)
    description["positions added to what is read"] = _describe_node(stack.positions)
    description["norm of what is read"] = _describe_node(stack.embed_norm)
    alike = stack.final_norm == blocks[-1].norm
    description["norm after the last block"] = "as in it" if alike else _describe_node(stack.final_norm)
    description["blocks gone through"] = "once" if stack.repeats == 1 else f"{stack.repeats} times, same parameters"
    description["norm"] = _group_blocks(blocks, lambda block: _describe_node(block.norm))
    description["where the norms stand"] = _group_blocks(blocks, _describe_norm_placement)
    description["attention and feed-forward"] = _group_blocks(
        blocks, lambda block: "side by side" if block.parallel else "in turn"
    )
    description["feed-forward"] = _group_blocks(blocks, lambda block: _describe_node(block.feed_forward))
    for what, words in _describe_attention([block.self_attention for block in blocks]).items():
        description[what] = words
    crossing = [block.cross_attention for block in blocks if block.cross_attention is not None]
    description["attention to the memory"] = _group_blocks(
        blocks, lambda block: "yes" if block.cross_attention else "no"
    )
    for what, words in _describe_attention(crossing).items() if crossing else ():
        description[f"cross-attention: {what}"] = words
    return description


_NORM_PLACEMENTS = {
    "pre": "before each part",
    "post": "after each sum",
    "both": "before each part and on its result",
    "result": "on each part's result",
}


def _get_feed_forward(block: spec.Block) -> spec.FeedForward:
    """Return the feed-forward of a block, or of each of its experts."""
    return block.feed_forward.expert if isinstance(block.feed_forward, spec.Experts) else block.feed_forward


def _describe_norm_placement(block: spec.Block) -> str:
    return _NORM_PLACEMENTS[block.norm_at] + ("" if block.has_first_norm else ", none before the self-attention")


def _describe_attention(attentions: list[Any]) -> dict[str, str]:
    questions: dict[str, Callable[[Any], str]] = {
        "what a position sees": _describe_visibility,
        "positions in attention": lambda one: _describe_node(one.position),
        "heads that share keys and values": lambda one: (
            "none" if one.kv_heads in (None, one.heads) else f"groups of {one.heads // one.kv_heads}"
        ),
        "norm of queries and keys": lambda one: _describe_node(one.qk_norm),
        "scale of scores": lambda one: "1 / sqrt(d_key)" if one.scale is None else f"{one.scale:.6g}",
        "softcap of scores": lambda one: _describe_node(one.softcap),
        "sinks": lambda one: "one for each head" if one.sinks else "none",
        "biases of attention": lambda one: "yes" if one.bias else "no",
    }
    dot_product = [one for one in attentions if isinstance(one, spec.Attention)]
    description = {what: _group_blocks(dot_product, words) for what, words in questions.items()} if dot_product else {}
    if len(dot_product) < len(attentions):
        description["self-attention"] = _group_blocks(
            attentions, lambda one: _describe_node(one) if one not in dot_product else "attention"
        )
    return description


def _describe_visibility(attention: spec.Attention) -> str:
    side = "itself and what is before it" if attention.causal else "both sides"
    return side if attention.window is None else f"{side}, nearer than {attention.window:,}"


def _describe_input(name: str, model_input: Any) -> dict[str, str]:
    description = {name: f"{type(model_input).__name__.lower()}{_describe_fields(model_input)}"}
    if _get_segments(model_input) is not None:
        description[f"{name}: segments"] = _describe_node(_get_segments(model_input))
    return description


def _get_segments(model_input: Any) -> spec.Segments | None:
    return getattr(model_input, "segments", None)


def _describe_head(head: spec.Head) -> dict[str, str]:
    return {"answer": f"{type(head).__name__.lower()}{_describe_fields(head)}"}


def _describe_plain_fields(node: Any) -> dict[str, str]:
    """Describe the fields of a node that are neither nodes nor sizes."""
    return {
        field.name: _describe_node(getattr(node, field.name))
        for field in dataclasses.fields(node)
        if field.name not in (*_SIZE_FIELDS, "layers") and not dataclasses.is_dataclass(getattr(node, field.name))
    }


def _describe_node(value: Any) -> str:
    """Describe a choice in words: its class and its options, without sizes."""
    match value:
        case None:
            return "none"
        case spec.Norm(kind, eps):
            return f"{'root mean square' if kind == 'rms' else 'layer'}, eps {eps:g}"
        case spec.FeedForward():
            gate = "gated " if value.gated else ""
            limit = "" if value.limit is None else f", limited to {value.limit:g}"
            return f"{gate}{value.activation}, {'with' if value.bias else 'without'} biases{limit}"
        case spec.Rotary(base, fraction, scaling):
            share = "" if fraction == 1 else f", {fraction:.0%} of the dimensions"
            return f"rotary, base {base:,.0f}{share}{'' if scaling is None else ', ' + _describe_node(scaling)}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__.lower()}{_describe_fields(value)}"
    return str(value)


def _describe_fields(node: Any) -> str:
    """Describe in brackets the options of a node that are neither sizes nor defaults."""
    descriptions = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        usual = value is None or value is False or (value == field.default and not isinstance(value, bool))
        if field.name in (*_SIZE_FIELDS, "segments") or usual:
            continue
        if value is True:
            descriptions.append(field.name)
        elif dataclasses.is_dataclass(value):
            descriptions.append(f"{field.name}: {_describe_node(value)}")
        else:
            descriptions.append(f"{field.name} {value}")
    return f" ({', '.join(descriptions)})" if descriptions else ""


def _group_blocks(items: Iterable[Any], describe: Callable[[Any], Any]) -> str:
    """Group items by their description, e.g. "4 (0-4, 6-10), none (5, 11)"."""
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(str(describe(item)), []).append(number)
    if len(numbers) == 1:
        return next(iter(numbers))
    return "; ".join(f"{description} (blocks {', '.join(_format_runs(own))})" for description, own in numbers.items())


def _format_runs(numbers: list[int]) -> Iterator[str]:
    """Yield runs of integers: 0 1 2 5 -> "0-2", "5"."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        own = [number for _, number in run]
        yield str(own[0]) if len(own) == 1 else f"{own[0]}-{own[-1]}"
