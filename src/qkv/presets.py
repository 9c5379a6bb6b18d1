"""Specs in one call: Transformers with equal blocks, the two of the 2017 paper, and ViT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from qkv import spec
from qkv.errors import SpecError


def encoder_decoder(
    *,
    source_vocab: int,
    target_vocab: int,
    d_model: int,
    heads: int,
    d_ff: int,
    layers: int | tuple[int, int],
    norm_at: Literal["pre", "post"] = "pre",
    norm: spec.Norm = spec.Norm(),  # noqa: B008  (frozen)
    feed_forward: spec.FeedForward | None = None,
    position: spec.Position | None = None,
    sinusoidal: bool = True,
    qk_norm: spec.Norm | None = None,
    shared_embedding: bool = False,
    tied: bool = True,
) -> spec.Transformer:
    """Build the spec of an encoder-decoder with equal blocks; layers is one number or (encoder's, decoder's).

    Positions are sinusoidal as in 2017 by default; `position` adds positions to the self-attentions. Pre-norm stacks
    end
    with a norm. Tied, the embedding is also the output matrix, scaled as in 2017; untied, the output has a matrix of
    its
    own, and nothing is scaled.
    """
    if d_model % heads:
        raise SpecError(f"d_model={d_model} is not a multiple of heads={heads}")
    attention = spec.Attention(heads, d_model // heads, position=position, qk_norm=qk_norm)
    across = replace(attention, position=None)
    block = spec.Block(attention, feed_forward or spec.FeedForward(d_ff), norm=norm, norm_at=norm_at)
    encoder_layers, decoder_layers = (layers, layers) if isinstance(layers, int) else layers

    def stack(vocab: int, block: spec.Block, count: int) -> spec.Stack:
        return spec.Stack(
            d_model=d_model,
            blocks=(block,) * count,
            input=spec.Tokens(vocab, scale=tied),
            positions=spec.Sinusoidal() if sinusoidal else None,
            final_norm=norm if norm_at == "pre" else None,
        )

    causal = replace(block, self_attention=replace(attention, causal=True), cross_attention=across)
    return spec.Transformer(
        encoder=stack(source_vocab, block, encoder_layers),
        decoder=stack(target_vocab, causal, decoder_layers),
        head=spec.Vocabulary(tied=tied),
        shared_embedding=shared_embedding,
    )


def transformer_base(vocab: int = 37000) -> spec.Transformer:
    """Build the base model of Vaswani et al. 2017, table 3: 65 million parameters with a shared vocabulary of
    37,000."""
    return encoder_decoder(
        source_vocab=vocab, target_vocab=vocab, d_model=512, heads=8, d_ff=2048, layers=6,
        norm_at="post", shared_embedding=True,
    )  # fmt: skip


def transformer_big(vocab: int = 37000) -> spec.Transformer:
    """Build the big model of Vaswani et al. 2017, table 3: 213 million parameters with a shared vocabulary of
    37,000."""
    return encoder_decoder(
        source_vocab=vocab, target_vocab=vocab, d_model=1024, heads=16, d_ff=4096, layers=6,
        norm_at="post", shared_embedding=True,
    )  # fmt: skip


def vision_transformer(
    *,
    classes: int,
    image_size: int,
    patch_size: int,
    d_model: int,
    heads: int,
    d_ff: int,
    layers: int,
    channels: int = 3,
) -> spec.Transformer:
    """Build the spec of a classifier of square images as in Dosovitskiy et al. 2021.

    image_size, patch_size: the sides in pixels.
    """
    for whole, name, part in ((d_model, "heads", heads), (image_size, "patch_size", patch_size)):
        if whole % part:
            raise SpecError(
                f"{'d_model' if name == 'heads' else 'image_size'}={whole} is not a multiple of {name}={part}"
            )
    norm = spec.Norm(eps=1e-6)
    block = spec.Block(spec.Attention(heads, d_model // heads), spec.FeedForward(d_ff, "gelu"), norm=norm)
    encoder = spec.Stack(
        d_model=d_model,
        blocks=(block,) * layers,
        input=spec.Patches(patch_size, channels),
        positions=spec.Learned((image_size // patch_size) ** 2 + 1),
        final_norm=norm,
    )
    return spec.Transformer(encoder, None, spec.Classes(classes, "first"))


def vit_base(classes: int = 1000) -> spec.Transformer:
    """Build ViT-Base/16 of Dosovitskiy et al. 2021, table 1: 86 million parameters, for images of 224 x 224 pixels."""
    return vision_transformer(
        classes=classes, image_size=224, patch_size=16, d_model=768, heads=12, d_ff=3072, layers=12
    )


PRESETS: dict[str, Callable[[], spec.Transformer]] = {
    "transformer-base": transformer_base,
    "transformer-big": transformer_big,
    "vit-base": vit_base,
}
