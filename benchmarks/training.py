"""Target tokens a second of whole training steps: forward, backward, clipping, fused Adam.

Our Transformer (by the Trainer's own step) and our recurrent models (GRU, two layers) beside torch.nn.Transformer and
transformers' Marian, fused ("sdpa") and explicit ("eager"). All of a round train on the same batches of random tokens,
of like lengths as Multi30k's, with label smoothing and one embedding for source, target and answer (the recurrent
models: three). All have dropout on the embeddings and on each layer's result, and nowhere else; torch.nn.Transformer
is told its causal mask is causal, so that it takes the fused kernel. Nothing is trained on random tokens: this is
about speed alone.

    python benchmarks/training.py --size small base10k
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timing
import torch
from sizes import BOS, EOS, PAD, SIZES, Size, build_marian, build_qkv, count_parameters, draw_lengths
from torch import Tensor, nn

import qkv.models
from qkv import spec
from qkv.data import BatchSampler
from qkv.data.batch import IGNORE_INDEX, Batch
from qkv.positions import compute_sinusoids
from qkv.training import OptimizerConfig, Trainer, TrainingConfig
from qkv.training.reporters import MetricsWindow, NullReporter

Step = Callable[[Batch], None]
SMOOTHING, OPTIMIZER = 0.1, OptimizerConfig(learning_rate=1e-4)
RECURRENT = {"ours, GRU without attention": None, "ours, GRU additive": "additive", "ours, GRU dot": "dot"}
VARIANTS = ["ours", "torch.nn.Transformer", "Marian sdpa", "Marian eager", *RECURRENT]


def main() -> None:
    """Measure and print a table for each size."""
    parser = timing.build_parser(__doc__, rounds=7)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["small", "base10k"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batches", type=int, default=2, help="steps a turn (%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of matrix products")
    options = parser.parse_args()
    timing.set_up(options)
    if any(name.startswith("Marian") for name in options.variants):
        import transformers

        print(f"transformers {transformers.__version__}\n")
    for name in options.size:
        measure(name, options)


def measure(name: str, options: Any) -> None:
    """Print the table of one size."""
    size = SIZES[name]
    batches = make_batches(size, options.batches)
    tokens = sum(batch.target_tokens for batch in batches)
    models = {variant: build(variant, size, options.dropout) for variant in options.variants}
    steps = {variant: make_step(variant, model, options) for variant, model in models.items()}

    def turn(step: Step) -> Callable[[], None]:
        return lambda: [step(batch) for batch in batches] and None

    seconds = timing.take_turns({variant: turn(step) for variant, step in steps.items()}, options)
    first = options.variants[0]
    rows = [
        (
            variant,
            count_parameters(models[variant]),
            f"{tokens / statistics.median(seconds[variant]):,.0f}",
            timing.format_speed_up(seconds, first, variant),
        )
        for variant in options.variants
    ]
    print(f"{name}: {size}, {options.precision}, dropout {options.dropout}, {tokens} target tokens a turn\n")
    timing.print_table(["", "parameters", "target tokens/s", f"{first}, times as fast"], rows)


def make_batches(size: Size, count: int) -> list[Batch]:
    """Return batches of random tokens, of like lengths, each of about the size's number of target tokens."""
    drawn = draw_lengths(20 * count * size.batch_tokens // 14 + 100)
    chosen = BatchSampler(drawn, round(2.04 * size.batch_tokens)).batches(0)
    sizes = sorted(chosen, key=lambda numbers: abs(int(drawn[numbers, 1].sum()) - size.batch_tokens))
    return [make_batch(drawn[numbers], size.vocab) for numbers in sizes[:count]]


def make_batch(drawn: Any, vocab: int) -> Batch:
    """Return random sentences of the drawn lengths, (sentences, 2)."""
    rows, (longest_source, longest_target) = len(drawn), drawn.max(axis=0).tolist()
    source_mask = torch.arange(longest_source) < torch.from_numpy(drawn[:, :1])
    target_mask = torch.arange(longest_target) < torch.from_numpy(drawn[:, 1:])
    source = torch.randint(EOS + 2, vocab, (rows, longest_source)).masked_fill(~source_mask, PAD)
    labels = torch.randint(EOS + 2, vocab, (rows, longest_target)).masked_fill(~target_mask, IGNORE_INDEX)
    target = torch.cat([torch.full((rows, 1), BOS), labels[:, :-1]], dim=1).masked_fill(~target_mask, PAD)
    return Batch(source, source_mask, target, labels, torch.arange(rows))


def build(variant: str, size: Size, dropout: float) -> nn.Module:
    """Return the model of a variant."""
    if variant == "ours":
        return build_qkv(size)
    if variant in RECURRENT:
        reads = spec.Tokens(size.vocab), spec.Tokens(size.vocab)
        return qkv.models.build(spec.Recurrent("gru", size.d_model, 2, *reads, attention=RECURRENT[variant]))
    if variant == "torch.nn.Transformer":
        return Theirs(size, dropout)
    return build_marian(size, variant.split()[1], dropout).train()


class Theirs(nn.Module):
    """torch.nn.Transformer with embedding, positions and tied answer around it."""

    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        width, shape = size.d_model, (size.d_model, size.heads, size.d_ff, dropout)
        settings = {"activation": "relu", "batch_first": True, "norm_first": True}
        self.embedding = nn.Embedding(size.vocab, width, padding_idx=None)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.register_buffer("positions", compute_sinusoids(torch.arange(64), width))
        self.dropout = nn.Dropout(dropout)
        encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*shape, **settings), size.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*shape, **settings), size.layers, nn.LayerNorm(width)
        )
        self.both = nn.Transformer(width, size.heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True)
        for module in self.both.modules():
            if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout.p = 0.0  # after the activation, where the others have none
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        hidden = self.both(
            self._embed(source),
            self._embed(target),
            tgt_mask=torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=~source_mask,
            memory_key_padding_mask=~source_mask,
            tgt_is_causal=True,
        )
        return nn.functional.linear(hidden, self.embedding.weight)

    def _embed(self, tokens: Tensor) -> Tensor:
        scaled = self.embedding(tokens) * self.embedding.embedding_dim**0.5
        return self.dropout(scaled + self.positions[: tokens.shape[1]])


def make_step(variant: str, model: nn.Module, options: Any) -> Step:
    """Return what makes one training step of a variant on a batch."""
    if variant.startswith("ours"):
        return make_our_step(model, options)
    if variant.startswith("Marian"):
        return make_peer_step(
            model,
            lambda batch: (
                model(
                    input_ids=batch.source,
                    attention_mask=batch.source_mask,
                    decoder_input_ids=batch.target,
                    use_cache=False,
                ).logits
            ),
            options,
        )
    return make_peer_step(model, lambda batch: model(batch.source, batch.target, batch.source_mask), options)


def make_our_step(model: nn.Module, options: Any) -> Step:
    """Return the Trainer's step: learning rate, checks for NaN and statistics included."""
    training = TrainingConfig(
        max_steps=10**6,
        optimizer=OPTIMIZER,
        label_smoothing=SMOOTHING,
        dropout=options.dropout,
        precision=options.precision,
    )
    given: list[Batch] = []

    def collate(numbers: Sequence[int]) -> Batch:
        return given[numbers[0]]

    trainer = Trainer(model, training, BatchSampler([1], 1), collate, Path("unused"), reporter=NullReporter())
    trainer._metrics_window = MetricsWindow()
    model.train()

    def step(batch: Batch) -> None:
        given[:] = [batch]
        trainer._train_step(iter([[0]]))

    return step


def make_peer_step(model: nn.Module, forward: Callable[[Batch], Tensor], options: Any) -> Step:
    """Return a step as one writes it by hand, with torch's loss, clipping and fused Adam."""
    betas = OPTIMIZER.beta1, OPTIMIZER.beta2
    adam = torch.optim.Adam(
        model.parameters(), lr=OPTIMIZER.learning_rate, betas=betas, eps=OPTIMIZER.epsilon, fused=True
    )
    model.train()

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = forward(batch)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=SMOOTHING
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm, foreach=True)
        adam.step()
        adam.zero_grad(set_to_none=True)
        loss.item()

    return step


if __name__ == "__main__":
    sys.exit(main())
