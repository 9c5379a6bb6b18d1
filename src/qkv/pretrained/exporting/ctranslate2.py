"""Models for CTranslate2 (Klein et al. 2020), an engine that translates and continues text fast on a processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qkv import spec
from qkv.errors import SpecError, VocabularyError
from qkv.layers import Attention
from qkv.models import SequenceModel
from qkv.models.transformer import Stack, Transformer
from qkv.positions import sinusoids
from qkv.pretrained.exporting.folders import library
from qkv.text import Tokenizer

_WAVES = 2048  # positions of a table of sinusoids: the engine takes tables alone
_NEVER = -65504.0  # the lowest number of half precision, in which the engine may compute
_ACTIVATIONS = {
    "relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "gelu_sigmoid": "GELUSigmoid", "silu": "SWISH",
    "tanh": "Tanh",
}  # fmt: skip


def to_ctranslate2(
    model: SequenceModel,
    folder: Path,
    source: Tokenizer,
    target: Tokenizer,
    *,
    bos: int | None,
    eos: int,
    never: Sequence[int] = (),
    ends_source: bool = False,
) -> None:
    """Write a decoder, or an encoder with a decoder, to an existing folder for `ctranslate2.Generator` or `Translator`.

    bos: what the decoder begins with; None where a prompt does that. eos: what ends an answer. never: tokens that no
    answer holds. ends_source: the engine puts eos after each source. Raises SpecError naming everything in the model
    that the engine does not have, VocabularyError for tokenizers of another model, MissingExtraError without it.
    """
    engine = library("ctranslate2", "ctranslate2").specs
    unsupported = list(_unsupported(model.spec))
    if unsupported:
        raise SpecError(f"CTranslate2 cannot say {'; '.join(unsupported)}. Write the model for ONNX instead")
    assert isinstance(model, Transformer)
    choice: Any = model.spec
    decoder = _decoder(engine, model, never)
    if choice.encoder is None:
        whole = engine.TransformerDecoderModelSpec(decoder)
        whole.register_vocabulary(_vocabulary(target, choice.decoder))
    else:
        assert model.encoder is not None
        encoder = engine.TransformerEncoderSpec(
            model.encoder.depth, **_shape(engine, choice.encoder), no_final_norm=choice.encoder.final_norm is None
        )
        _fill_stack(encoder, model.encoder)
        whole = engine.TransformerSpec(encoder, decoder)
        whole.register_source_vocabulary(_vocabulary(source, choice.encoder))
        whole.register_target_vocabulary(_vocabulary(target, choice.decoder))
        whole.config.add_source_eos = ends_source
        whole.config.decoder_start_token = target.vocabulary()[eos if bos is None else bos]
    names, unknown = target.vocabulary(), target.special_tokens.unk
    whole.config.eos_token = names[eos]
    whole.config.bos_token = names[next(n for n in (bos, target.special_tokens.bos, eos) if n is not None)]
    whole.config.unk_token = names[eos if unknown is None else unknown]
    whole.config.layer_norm_epsilon = choice.decoder.blocks[0].norm.eps
    whole.validate()
    whole.optimize()
    whole.save(str(folder))


def _unsupported(choice: spec.Spec) -> Iterator[str]:
    """Yield what the engine does not have, by the names of the spec."""
    if not isinstance(choice, spec.Transformer):
        yield f"a {type(choice).__name__}"
        return
    if choice.decoder is None:
        yield "an encoder alone"
        return
    if isinstance(choice.answers, spec.Vocabulary) and choice.answers.dense is not None:
        yield "answers.dense"
    if isinstance(choice.answers, spec.PointerGenerator):
        yield "answers=PointerGenerator"
    stacks = {"encoder": choice.encoder, "decoder": choice.decoder}
    norms = {one for stack in stacks.values() if stack for one in _norms(stack)}
    if len(norms) > 1:
        yield f"norms that differ ({', '.join(f'{one.kind} with eps={one.eps}' for one in sorted(norms, key=str))})"
    for name, stack in stacks.items():
        if stack is not None:
            yield from (f"{name}.{what}" for what in _unsupported_stack(stack, alone=choice.encoder is None))


def _norms(stack: spec.Stack) -> Iterator[spec.Norm]:
    for block in stack.blocks:
        yield block.norm
        if isinstance(block.self_attention, spec.Attention) and isinstance(block.self_attention.qk_norm, spec.Norm):
            yield block.self_attention.qk_norm
    yield from filter(None, (stack.embed_norm, stack.final_norm))


def _unsupported_stack(stack: spec.Stack, alone: bool) -> Iterator[str]:
    block = stack.blocks[0]
    position = block.self_attention.position
    if not isinstance(block.self_attention, spec.Attention):
        yield f"self_attention={type(block.self_attention).__name__}"
        return
    if not isinstance(block.feed_forward, spec.FeedForward) or block.feed_forward.limit is not None:
        yield f"feed_forward={block.feed_forward}"
    elif block.feed_forward.activation not in _ACTIVATIONS:
        yield f"feed_forward.activation={block.feed_forward.activation!r}"
    if len(set(stack.blocks)) > 1:
        yield "blocks that differ"
    if stack.repeats > 1:
        yield f"repeats={stack.repeats}"
    if not isinstance(stack.reads, spec.Tokens):
        yield f"reads={type(stack.reads).__name__}"
    elif stack.reads.width is not None or stack.reads.segments is not None:
        yield "reads with a width of their own, or segments"
    if (stack.positions is None) == (position is None):
        yield "no positions at all" if position is None else "positions of tokens beside those of an attention"
    elif stack.positions is not None and not isinstance(stack.positions, spec.Learned | spec.Sinusoidal):
        yield f"positions={type(stack.positions).__name__}"
    if block.norm_at == "result" or (block.norm_at == "both" and not alone):
        yield f"norm_at={block.norm_at!r}"
    if block.norm_at == "post" and stack.final_norm is not None:
        yield "final_norm after blocks with norm_at='post'"
    if not block.first_norm:
        yield "first_norm=False"
    if block.parallel and block.norm.kind != "layer":
        yield "parallel blocks with norms of the kind 'rms'"
    yield from (f"self_attention.{what}" for what in _unsupported_attention(block.self_attention, alone))
    if block.cross_attention is not None:
        across = block.cross_attention
        yield from (f"cross_attention.{what}" for what in _unsupported_attention(across, alone))
        same = ("heads", "d_key", "kv_heads", "qk_norm")
        if any(getattr(across, name) != getattr(block.self_attention, name) for name in same):
            yield f"cross_attention with other {', '.join(same)} than self_attention"
        if across.position is not None:
            yield "cross_attention.position"


def _unsupported_attention(choice: spec.Attention, alone: bool) -> Iterator[str]:
    """A window, which the engine lays over its cache alone, and angles scaled by wavelength, which it computes with
    other numbers, would change what the model predicts."""
    each = isinstance(choice.qk_norm, spec.Norm) and choice.qk_norm.kind == "rms"
    if choice.qk_norm is not None and not (alone and each):
        yield f"qk_norm={choice.qk_norm}"
    for name in ("window", "softcap"):
        if getattr(choice, name) is not None:
            yield f"{name}={getattr(choice, name)}"
    if choice.sinks:
        yield "sinks"
    if choice.d_value not in (None, choice.d_key):
        yield f"d_value={choice.d_value} beside d_key={choice.d_key}"
    if choice.kv_heads not in (None, choice.heads) and not alone:
        yield f"kv_heads={choice.kv_heads} beside heads={choice.heads}"
    match choice.position:
        case spec.Rotary(scaling=scaling) if scaling is not None and not isinstance(scaling, spec.Interpolated):
            yield f"position.scaling={type(scaling).__name__}"
        case spec.Rotary() | spec.Alibi() if not alone:
            yield f"position={type(choice.position).__name__} beside another stack"
        case spec.Alibi(factor) if factor != 1.0:
            yield f"position.factor={factor}"


def _shape(engine: Any, stack: spec.Stack) -> dict[str, Any]:
    """What both kinds of stack take, apart from their depth."""
    block: Any = stack.blocks[0]
    attention, position = block.self_attention, block.self_attention.position
    shape: dict[str, Any] = {
        "num_heads": attention.heads,
        "pre_norm": block.norm_at != "post",
        "activation": getattr(engine.common_spec.Activation, _ACTIVATIONS[block.feed_forward.activation]),
        "layernorm_embedding": stack.embed_norm is not None,
        "relative_attention_bias": isinstance(position, spec.RelativeBias),
        "ffn_glu": block.feed_forward.gated,
        "rms_norm": block.norm.kind == "rms",
        "num_heads_kv": None if attention.kv_heads in (None, attention.heads) else attention.kv_heads,
        "head_dim": None if attention.heads * attention.d_key == stack.d_model else attention.d_key,
        "qk_norm": attention.qk_norm is not None,
        "pre_post_layer_norm": block.norm_at == "both",
    }
    if isinstance(position, spec.Rotary):
        shape |= {
            "rotary_dim": int(attention.d_key * position.fraction),
            "rotary_interleave": False,
            "rotary_base": position.base,
        }
        if isinstance(position.scaling, spec.Interpolated):
            shape["rotary_scaling_type"] = engine.attention_spec.RotaryScalingType.Linear
            shape["rotary_scaling_factor"] = position.scaling.factor
    return shape


def _decoder(engine: Any, model: Transformer, never: Sequence[int]) -> Any:
    whole: Any = model.spec
    choice, decoder = whole.decoder, model.decoder
    assert decoder is not None
    block = choice.blocks[0]
    written = engine.TransformerDecoderSpec(
        decoder.depth,
        **_shape(engine, choice),
        no_final_norm=choice.final_norm is None,
        with_encoder_attention=block.cross_attention is not None,
        alibi=isinstance(block.self_attention.position, spec.Alibi),
        parallel_residual=block.parallel,
    )
    _fill_stack(written, decoder)
    answer: Any = model.answer
    written.projection.weight = answer.vectors.detach()
    bias = None if answer.bias is None else answer.bias.detach().clone()
    if never:
        bias = torch.zeros(len(answer.vectors)) if bias is None else bias
        bias[list(never)] = _NEVER
    if bias is not None:
        written.projection.bias = bias
    if answer.scale is not None:
        written.scale_outputs = float(answer.scale)
    if answer.softcap is not None:
        written.final_logit_softcapping = float(answer.softcap)
    return written


def _fill_stack(written: Any, stack: Stack) -> None:
    embedding: Any = stack.embedding
    table = written.embeddings[0] if isinstance(written.embeddings, list) else written.embeddings
    table.weight = embedding.tokens.weight.detach()
    written.scale_embeddings = float(embedding.scale)
    if embedding.positions is not None:
        written.position_encodings.encodings = embedding.positions.weight.detach()
    elif isinstance(stack.choice.positions, spec.Sinusoidal):
        waves = stack.choice.positions
        numbers = torch.arange(waves.start, waves.start + _WAVES)
        written.position_encodings.encodings = sinusoids(numbers, stack.choice.d_model, waves.layout)
    if stack.choice.embed_norm is not None:
        _fill_norm(written.layernorm_embedding, embedding.norm)
    if stack.choice.final_norm is not None:
        _fill_norm(written.layer_norm, stack.final_norm)
    for layer, block in zip(written.layer, stack.blocks, strict=True):
        _fill_block(layer, block)
        position = stack.choice.blocks[0].self_attention.position
        if isinstance(position, spec.RelativeBias):
            shared: Any = stack.position_biases[0]
            layer.self_attention.relative_attention_bias = shared.bias.detach()
            layer.self_attention.relative_attention_max_distance = np.int32(position.max_distance)


def _fill_block(layer: Any, block: Any) -> None:
    """Norms stand where the block has them: with the sublayer, or around it."""
    attention, feed_forward = block.self_attention_residual, block.feed_forward_residual
    if block.choice.parallel:
        _fill_norm(layer.input_layer_norm, attention.before)
        _fill_norm(layer.post_attention_layer_norm, feed_forward.before)
    elif block.choice.norm_at == "both":
        _fill_norm(layer.input_layer_norm, attention.before)
        _fill_norm(layer.post_attention_layer_norm, attention.after)
        _fill_norm(layer.pre_feedforward_layer_norm, feed_forward.before)
        _fill_norm(layer.post_feedforward_layer_norm, feed_forward.after)
    else:
        at = "before" if block.choice.norm_at == "pre" else "last"
        _fill_norm(layer.self_attention.layer_norm, getattr(attention, at))
        _fill_norm(layer.ffn.layer_norm, getattr(feed_forward, at))
        if block.cross_attention is not None:
            _fill_norm(layer.attention.layer_norm, getattr(block.cross_attention_residual, at))
    _fill_attention(layer.self_attention, block.self_attention, apart=False)
    if block.cross_attention is not None:
        _fill_attention(layer.attention, block.cross_attention, apart=True)
    wide = block.feed_forward
    _fill_linear(layer.ffn.linear_0, wide.widen if wide.gate is None else wide.gate)
    if wide.gate is not None:
        _fill_linear(layer.ffn.linear_0_noact, wide.widen)
    _fill_linear(layer.ffn.linear_1, wide.narrow)


def _fill_attention(written: Any, attention: Attention, apart: bool) -> None:
    """Query, key and value are one matrix; over a memory, the query is apart."""
    parts = [attention.query, attention.key, attention.value]
    for place, of in zip(written.linear, [parts[:1], parts[1:]] if apart else [parts], strict=False):
        place.weight = torch.cat([part.weight.detach() for part in of])
        if attention.choice.bias:
            place.bias = torch.cat([part.bias.detach() for part in of])
    _fill_linear(written.linear[-1], attention.output)
    if attention.query_norm is not None:
        _fill_norm(written.q_norm, attention.query_norm)
        _fill_norm(written.k_norm, attention.key_norm)
    if attention.choice.scale is not None:
        written.queries_scale = float(attention.choice.scale)


def _fill_linear(written: Any, linear: nn.Linear) -> None:
    written.weight = linear.weight.detach()
    if linear.bias is not None:
        written.bias = linear.bias.detach()


def _fill_norm(written: Any, norm: Any) -> None:
    written.gamma = norm.weight.detach()
    if isinstance(norm, nn.LayerNorm):
        written.beta = norm.bias.detach()


def _vocabulary(tokenizer: Tokenizer, stack: spec.Stack) -> list[str]:
    """The spelling of each token the model has a vector for."""
    assert isinstance(stack.reads, spec.Tokens)
    names, vocab = tokenizer.vocabulary(), stack.reads.vocab
    if len(names) > vocab:
        raise VocabularyError(
            f"the tokenizer has {len(names)} tokens and the model {vocab}; expected the one that the model learned with"
        )
    return names + [f"<without a name {number}>" for number in range(len(names), vocab)]
