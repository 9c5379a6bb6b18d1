"""Export to CTranslate2 (Klein et al. 2020), an engine for fast translation and generation on a CPU."""

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
from qkv.positions import compute_sinusoids
from qkv.pretrained.export.output_folder import import_library
from qkv.text import Tokenizer

_SINUSOIDAL_POSITIONS = 2048  # sinusoidal positions are written as a table: the engine supports tables only
_SUPPRESSED_SCORE = -65504.0  # the lowest number in half precision, in which the engine may compute
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
    suppress_tokens: Sequence[int] = (),
    add_source_eos: bool = False,
) -> None:
    """Write a decoder, or an encoder with a decoder, to an existing folder for `ctranslate2.Generator` or `Translator`.

    bos: the token that the decoder starts with; None where a prompt does that. eos: the token that ends an output.
    never:
    tokens that no output contains. ends_source: whether the engine appends eos to each source. Raises SpecError naming
    everything in the model that the engine does not support, VocabularyError for tokenizers of another model, and
    MissingExtraError without ctranslate2.
    """
    engine = import_library("ctranslate2", "ctranslate2").specs
    unsupported = list(_find_unsupported(model.spec))
    if unsupported:
        raise SpecError(f"CTranslate2 does not support {'; '.join(unsupported)}. Write the model for ONNX instead")
    assert isinstance(model, Transformer)
    choice: Any = model.spec
    decoder = _build_decoder(engine, model, suppress_tokens)
    if choice.encoder is None:
        whole = engine.TransformerDecoderModelSpec(decoder)
        whole.register_vocabulary(_list_vocabulary(target, choice.decoder))
    else:
        assert model.encoder is not None
        encoder = engine.TransformerEncoderSpec(
            model.encoder.depth,
            **_stack_options(engine, choice.encoder),
            no_final_norm=choice.encoder.final_norm is None,
        )
        _copy_stack(encoder, model.encoder)
        whole = engine.TransformerSpec(encoder, decoder)
        whole.register_source_vocabulary(_list_vocabulary(source, choice.encoder))
        whole.register_target_vocabulary(_list_vocabulary(target, choice.decoder))
        whole.config.add_source_eos = add_source_eos
        whole.config.decoder_start_token = target.vocabulary()[eos if bos is None else bos]
    names, unknown = target.vocabulary(), target.special_tokens.unk
    whole.config.eos_token = names[eos]
    whole.config.bos_token = names[next(n for n in (bos, target.special_tokens.bos, eos) if n is not None)]
    whole.config.unk_token = names[eos if unknown is None else unknown]
    whole.config.layer_norm_epsilon = choice.decoder.blocks[0].norm.eps
    whole.validate()
    whole.optimize()
    whole.save(str(folder))


def _find_unsupported(config: spec.Spec) -> Iterator[str]:
    """Yield everything in a spec that the engine does not support."""
    if not isinstance(config, spec.Transformer):
        yield f"a {type(config).__name__}"
        return
    if config.decoder is None:
        yield "an encoder alone"
        return
    if isinstance(config.head, spec.Vocabulary) and config.head.dense is not None:
        yield "head.dense"
    if isinstance(config.head, spec.PointerGenerator):
        yield "head=PointerGenerator"
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    norms = {one for stack in stacks.values() if stack for one in _iter_norms(stack)}
    if len(norms) > 1:
        yield f"norms that differ ({', '.join(f'{one.kind} with eps={one.eps}' for one in sorted(norms, key=str))})"
    for name, stack in stacks.items():
        if stack is not None:
            yield from (
                f"{name}.{what}" for what in _find_unsupported_in_stack(stack, is_decoder_only=config.encoder is None)
            )


def _iter_norms(stack: spec.Stack) -> Iterator[spec.Norm]:
    for block in stack.blocks:
        yield block.norm
        if isinstance(block.self_attention, spec.Attention) and isinstance(block.self_attention.qk_norm, spec.Norm):
            yield block.self_attention.qk_norm
    yield from filter(None, (stack.embed_norm, stack.final_norm))


def _find_unsupported_in_stack(stack: spec.Stack, is_decoder_only: bool) -> Iterator[str]:
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
    if not isinstance(stack.input, spec.Tokens):
        yield f"input={type(stack.input).__name__}"
    elif stack.input.width is not None or stack.input.segments is not None:
        yield "input with its own width, or with segments"
    if (stack.positions is None) == (position is None):
        yield "no positions at all" if position is None else "positions of tokens beside those of an attention"
    elif stack.positions is not None and not isinstance(stack.positions, spec.Learned | spec.Sinusoidal):
        yield f"positions={type(stack.positions).__name__}"
    if block.norm_at == "result" or (block.norm_at == "both" and not is_decoder_only):
        yield f"norm_at={block.norm_at!r}"
    if block.norm_at == "post" and stack.final_norm is not None:
        yield "final_norm after blocks with norm_at='post'"
    if not block.has_first_norm:
        yield "first_norm=False"
    if block.parallel and block.norm.kind != "layer":
        yield "parallel blocks with norms of the kind 'rms'"
    yield from (
        f"self_attention.{what}" for what in _find_unsupported_in_attention(block.self_attention, is_decoder_only)
    )
    if block.cross_attention is not None:
        across = block.cross_attention
        yield from (f"cross_attention.{what}" for what in _find_unsupported_in_attention(across, is_decoder_only))
        same = ("heads", "d_key", "kv_heads", "qk_norm")
        if any(getattr(across, name) != getattr(block.self_attention, name) for name in same):
            yield f"cross_attention with other {', '.join(same)} than self_attention"
        if across.position is not None:
            yield "cross_attention.position"


def _find_unsupported_in_attention(config: spec.Attention, is_decoder_only: bool) -> Iterator[str]:
    """Yield everything in an attention that the engine does not support.

    A window, which the engine applies only to its cache, and rotary angles scaled by wavelength, for which it uses
    other
    constants, would change the predictions.
    """
    each = isinstance(config.qk_norm, spec.Norm) and config.qk_norm.kind == "rms"
    if config.qk_norm is not None and not (is_decoder_only and each):
        yield f"qk_norm={config.qk_norm}"
    for name in ("window", "softcap"):
        if getattr(config, name) is not None:
            yield f"{name}={getattr(config, name)}"
    if config.sinks:
        yield "sinks"
    if config.d_value not in (None, config.d_key):
        yield f"d_value={config.d_value} beside d_key={config.d_key}"
    if config.kv_heads not in (None, config.heads) and not is_decoder_only:
        yield f"kv_heads={config.kv_heads} beside heads={config.heads}"
    match config.position:
        case spec.Rotary(scaling=scaling) if scaling is not None and not isinstance(scaling, spec.LinearScaling):
            yield f"position.scaling={type(scaling).__name__}"
        case spec.Rotary() | spec.Alibi() if not is_decoder_only:
            yield f"position={type(config.position).__name__} beside another stack"
        case spec.Alibi(factor) if factor != 1.0:
            yield f"position.factor={factor}"


def _stack_options(engine: Any, stack: spec.Stack) -> dict[str, Any]:
    """Return the options of both kinds of stacks, apart from their depth."""
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
        if isinstance(position.scaling, spec.LinearScaling):
            shape["rotary_scaling_type"] = engine.attention_spec.RotaryScalingType.Linear
            shape["rotary_scaling_factor"] = position.scaling.factor
    return shape


def _build_decoder(engine: Any, model: Transformer, suppress_tokens: Sequence[int]) -> Any:
    whole: Any = model.spec
    choice, decoder = whole.decoder, model.decoder
    assert decoder is not None
    block = choice.blocks[0]
    written = engine.TransformerDecoderSpec(
        decoder.depth,
        **_stack_options(engine, choice),
        no_final_norm=choice.final_norm is None,
        with_encoder_attention=block.cross_attention is not None,
        alibi=isinstance(block.self_attention.position, spec.Alibi),
        parallel_residual=block.parallel,
    )
    _copy_stack(written, decoder)
    answer: Any = model.head
    written.projection.weight = answer.weight.detach()
    bias = None if answer.bias is None else answer.bias.detach().clone()
    if suppress_tokens:
        bias = torch.zeros(len(answer.weight)) if bias is None else bias
        bias[list(suppress_tokens)] = _SUPPRESSED_SCORE
    if bias is not None:
        written.projection.bias = bias
    if answer.scale is not None:
        written.scale_outputs = float(answer.scale)
    if answer.softcap is not None:
        written.final_logit_softcapping = float(answer.softcap)
    return written


def _copy_stack(target: Any, stack: Stack) -> None:
    embedding: Any = stack.embedding
    table = target.embeddings[0] if isinstance(target.embeddings, list) else target.embeddings
    table.weight = embedding.tokens.weight.detach()
    target.scale_embeddings = float(embedding.scale)
    if embedding.positions is not None:
        target.position_encodings.encodings = embedding.positions.weight.detach()
    elif isinstance(stack.config.positions, spec.Sinusoidal):
        waves = stack.config.positions
        numbers = torch.arange(waves.start, waves.start + _SINUSOIDAL_POSITIONS)
        target.position_encodings.encodings = compute_sinusoids(numbers, stack.config.d_model, waves.layout)
    if stack.config.embed_norm is not None:
        _copy_norm(target.layernorm_embedding, embedding.norm)
    if stack.config.final_norm is not None:
        _copy_norm(target.layer_norm, stack.final_norm)
    for layer, block in zip(target.layer, stack.blocks, strict=True):
        _copy_block(layer, block)
        position = stack.config.blocks[0].self_attention.position
        if isinstance(position, spec.RelativeBias):
            shared: Any = stack.position_biases[0]
            layer.self_attention.relative_attention_bias = shared.bias.detach()
            layer.self_attention.relative_attention_max_distance = np.int32(position.max_distance)


def _copy_block(layer: Any, block: Any) -> None:
    """Copy a block. Norms belong to the sublayer or to the block around it."""
    attention, feed_forward = block.self_attention_residual, block.feed_forward_residual
    if block.config.parallel:
        _copy_norm(layer.input_layer_norm, attention.before)
        _copy_norm(layer.post_attention_layer_norm, feed_forward.before)
    elif block.config.norm_at == "both":
        _copy_norm(layer.input_layer_norm, attention.before)
        _copy_norm(layer.post_attention_layer_norm, attention.after)
        _copy_norm(layer.pre_feedforward_layer_norm, feed_forward.before)
        _copy_norm(layer.post_feedforward_layer_norm, feed_forward.after)
    else:
        at = "before" if block.config.norm_at == "pre" else "last"
        _copy_norm(layer.self_attention.layer_norm, getattr(attention, at))
        _copy_norm(layer.ffn.layer_norm, getattr(feed_forward, at))
        if block.cross_attention is not None:
            _copy_norm(layer.attention.layer_norm, getattr(block.cross_attention_residual, at))
    _copy_attention(layer.self_attention, block.self_attention, is_cross_attention=False)
    if block.cross_attention is not None:
        _copy_attention(layer.attention, block.cross_attention, is_cross_attention=True)
    wide = block.feed_forward
    _copy_linear(layer.ffn.linear_0, wide.up_proj if wide.gate is None else wide.gate)
    if wide.gate is not None:
        _copy_linear(layer.ffn.linear_0_noact, wide.up_proj)
    _copy_linear(layer.ffn.linear_1, wide.down_proj)


def _copy_attention(target: Any, attention: Attention, is_cross_attention: bool) -> None:
    """Copy an attention. Query, key and value are one matrix; in cross-attention the query is separate."""
    parts = [attention.query, attention.key, attention.value]
    for place, of in zip(target.linear, [parts[:1], parts[1:]] if is_cross_attention else [parts], strict=False):
        place.weight = torch.cat([part.weight.detach() for part in of])
        if attention.config.bias:
            place.bias = torch.cat([part.bias.detach() for part in of])
    _copy_linear(target.linear[-1], attention.output)
    if attention.query_norm is not None:
        _copy_norm(target.q_norm, attention.query_norm)
        _copy_norm(target.k_norm, attention.key_norm)
    if attention.config.scale is not None:
        target.queries_scale = float(attention.config.scale)


def _copy_linear(target: Any, linear: nn.Linear) -> None:
    target.weight = linear.weight.detach()
    if linear.bias is not None:
        target.bias = linear.bias.detach()


def _copy_norm(target: Any, norm: Any) -> None:
    target.gamma = norm.weight.detach()
    if isinstance(norm, nn.LayerNorm):
        target.beta = norm.bias.detach()


def _list_vocabulary(tokenizer: Tokenizer, stack: spec.Stack) -> list[str]:
    """Return the string of each token that the model has an embedding for."""
    assert isinstance(stack.input, spec.Tokens)
    names, vocab = tokenizer.vocabulary(), stack.input.vocab
    if len(names) > vocab:
        raise VocabularyError(
            f"the tokenizer has {len(names)} tokens and the model {vocab}; expected the tokenizer of the model"
        )
    return names + [f"<without a name {number}>" for number in range(len(names), vocab)]
