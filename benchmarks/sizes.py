"""The sizes that are measured, our models and transformers' Marian in them, and sentences as long as Multi30k's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import qkv.models
from qkv import spec
from qkv.models import SequenceModel
from qkv.presets import encoder_decoder

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Size:
    """layers: of the encoder, and as many of the decoder. batch_tokens: target tokens of a training batch, about."""

    layers: int
    d_model: int
    heads: int
    d_ff: int
    vocab: int
    batch_tokens: int


SIZES = {
    "tiny": Size(1, 16, 2, 32, 50, 100),  # to try the programs out; its numbers say nothing
    "small": Size(3, 256, 4, 1024, 8000, 2000),
    "base10k": Size(6, 512, 8, 2048, 10000, 400),
}

DECODERS = {
    "tiny": Size(1, 16, 2, 32, 50, 100),
    "gpt2": Size(12, 768, 12, 3072, 50257, 1024),  # GPT-2 small
}


def build_qkv(size: Size) -> SequenceModel:
    """Return our Transformer: pre-norm, sinusoidal positions, one embedding for source, target and answer."""
    choice = encoder_decoder(
        source_vocab=size.vocab, target_vocab=size.vocab, d_model=size.d_model, heads=size.heads, d_ff=size.d_ff,
        layers=size.layers, shared_embedding=True,
    )  # fmt: skip
    return qkv.models.build(choice)


def build_marian(size: Size, attention: str, dropout: float = 0.0) -> Any:
    """Return transformers' Marian of the same size: post-norm, the rest as ours; `attention` is "sdpa" or "eager".

    Exits with a message if transformers is not installed.
    """
    transformers = _import_transformers()
    choice = transformers.MarianConfig(
        vocab_size=size.vocab, d_model=size.d_model, encoder_layers=size.layers, decoder_layers=size.layers,
        encoder_attention_heads=size.heads, decoder_attention_heads=size.heads, encoder_ffn_dim=size.d_ff,
        decoder_ffn_dim=size.d_ff, activation_function="relu", scale_embedding=True, max_position_embeddings=512,
        dropout=dropout, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=None, attn_implementation=attention,
    )  # fmt: skip
    return transformers.MarianMTModel(choice)


def build_qkv_decoder(size: Size) -> SequenceModel:
    """Return our decoder in the shape of GPT-2: pre-norm, learned positions, one embedding that also answers."""
    attention = spec.Attention(heads=size.heads, d_key=size.d_model // size.heads, causal=True)
    block = spec.Block(attention, spec.FeedForward(size.d_ff, activation="gelu_tanh"))
    stack = spec.Stack(size.d_model, (block,) * size.layers, spec.Tokens(size.vocab), spec.Learned(1024))
    return qkv.models.build(spec.Transformer(None, stack, spec.Vocabulary()))


def build_gpt2(size: Size, attention: str) -> Any:
    """Return transformers' GPT-2 of the same size; `attention` is "sdpa" or "eager"."""
    transformers = _import_transformers()
    choice = transformers.GPT2Config(
        vocab_size=size.vocab, n_positions=1024, n_embd=size.d_model, n_layer=size.layers, n_head=size.heads,
        n_inner=size.d_ff, bos_token_id=BOS, eos_token_id=EOS, attn_implementation=attention,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(choice)


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SystemExit(
            f"transformers cannot be imported ({error}). Install it with `pip install transformers`, or leave it out: "
            "--variants ours, or --without marian decoder"
        ) from error
    return transformers


def count_parameters(model: torch.nn.Module) -> str:
    """How many numbers are trained, in millions."""
    return f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.1f}M"


def draw_lengths(count: int) -> npt.NDArray[np.int64]:
    """Draw (count, 2) source and target lengths, end token included: about 14 on average, 4 to 40."""
    generator = np.random.default_rng(0)
    source = generator.lognormal(np.log(13.5), 0.32, count)
    target = source * generator.normal(1.0, 0.15, count)
    return np.stack([source, target], axis=1).round().clip(4, 40).astype(np.int64)
