"""Tiny Shakespeare by character: the recipe `tiny-shakespeare` in the time that nanoGPT's CPU setting takes beside it.

nanoGPT's setting (github.com/karpathy/nanoGPT, README, "I only have a macbook"; written anew here in plain torch): 4
layers, 4 heads, 128 wide, learned positions, LayerNorm and linear layers without biases, GELU, tied vectors of
deviation 0.02, 64 characters of context, 12 of these in a batch, 2,000 steps of AdamW (0.9, 0.99, decay 0.1, clipped
at 1), 100 steps up to 1e-3 and half a cosine down to 1e-4. It is given torch's fused AdamW and causal attention, and no
time is counted for its validations. 1.88 is published for it.

Both train by turns in one process, so a busy machine slows both alike; ours ends when it has had as much time, and its
schedule follows the time that the other is going to take. Both are scored on the whole validation set in windows of 64
characters that do not overlap, each read by itself: what nanoGPT estimates from random windows.

    QKV_DATA=... python benchmarks/tiny_shakespeare.py
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.nn import functional

from qkv import tasks
from qkv.data.text.documents import TextCorpus
from qkv.evaluation.sliding_window import SlidingWindow, negative_log_likelihood
from qkv.tasks.language_modeling import training
from qkv.training import Trainer
from qkv.training.reporters import MetricsWindow as Statistics
from qkv.training.reporters import NullReporter

CONTEXT, ROWS, STEPS = 64, 12, 2000
D_MODEL, HEADS, LAYERS = 128, 4, 4


def main() -> None:
    """Train both and print their losses."""
    parser = timing.build_parser(__doc__, rounds=40)
    parser.add_argument("--steps", type=int, default=STEPS, help="of nanoGPT's setting (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="of the recipe")
    options = parser.parse_args()
    timing.set_up(options)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    recipe = tasks.read_recipe("tiny-shakespeare", options.overrides)
    assert isinstance(recipe, tasks.LanguageModelingConfig) and recipe.data.valid is not None
    texts = training.load_data(recipe)
    [learned], [checked] = texts.train, TextCorpus([recipe.data.valid])
    theirs = Theirs(learned, options.steps, recipe.training.seed)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(recipe, texts, Path(folder))
        begun, took = time.perf_counter(), {"theirs": 0.0, "ours": 0.0}
        for turn in range(1, options.rounds + 1):
            while theirs.step < options.steps * turn // options.rounds:
                took["theirs"] += time_step(clock, theirs.make_step)
            total = took["theirs"] * options.steps / theirs.step
            while took["ours"] < took["theirs"]:
                took["ours"] += time_step(clock, partial(ours.make_step, took["ours"], total))
            if turn % max(options.rounds // 8, 1) == 0:
                print(
                    f"{took['theirs']:5.0f} s  step {theirs.step:5} {theirs.loss(checked[:20000]):.3f}   "
                    f"{took['ours']:5.0f} s  step {ours.step:5} {ours.loss(checked[:20000], CONTEXT, CONTEXT):.3f}",
                    flush=True,
                )
    own = recipe.data.context
    sizes = [sum(parameter.numel() for parameter in one.model.parameters()) for one in (theirs, ours)]
    print(
        f"\n{(time.perf_counter() - begun) / 60:.1f} minutes of the clock for both; validation loss, nats a character\n"
    )
    rows = [
        (
            "nanoGPT's CPU setting",
            f"{sizes[0]:,}",
            theirs.step,
            f"{took['theirs']:.0f}",
            f"{theirs.loss(checked):.4f}",
            "",
        ),
        (
            "recipe shakespeare",
            f"{sizes[1]:,}",
            ours.step,
            f"{took['ours']:.0f}",
            f"{ours.loss(checked, CONTEXT, CONTEXT):.4f}",
            f"{ours.loss(checked, own, own // 2):.4f}",
        ),
    ]
    sliding = f"context {own}, moved on by {own // 2}"
    timing.print_table(["", "parameters", "steps", "seconds", f"windows of {CONTEXT}", sliding], rows)


def time_step(clock: Callable[[], float], step: Callable[[], None]) -> float:
    """Return the seconds that a step took."""
    started = clock()
    step()
    return clock() - started


class Ours:
    """The recipe's training, step by step."""

    def __init__(self, recipe: tasks.LanguageModelingConfig, texts: training.TextSplits, folder: Path) -> None:
        lesson = training.build_training_setup(recipe, texts, folder, folder / "tokens", resume=False)
        self.tokenizer, self.model = lesson.model.source_tokenizer, lesson.model.module
        self.trainer = Trainer(
            self.model,
            recipe.training,
            lesson.sampler,
            lesson.collate,
            folder,
            validate=lesson.validate,
            reporter=NullReporter(),
        )
        self.trainer._metrics_window = Statistics()
        self.batches = iter(lesson.sampler)
        self.model.train()

    @property
    def step(self) -> int:
        return self.trainer.state.step

    def make_step(self, seconds: float, total: float) -> None:
        """Make a step, so many seconds into a training of so many."""
        self.trainer.state.seconds = seconds
        self.trainer.config = replace(self.trainer.config, max_steps=None, max_epochs=None, max_minutes=total / 60)
        self.trainer._train_step(self.batches)

    def loss(self, text: str, context: int, stride: int) -> float:
        with self.trainer._evaluation_mode(), torch.no_grad():
            ids = [self.tokenizer.encode(text)]
            window, vocab = SlidingWindow(context, stride), self.tokenizer.size
            total, count = negative_log_likelihood(
                self.model, ids, window, bos=self.tokenizer.bos, eos=None, vocab_size=vocab
            )
        return total / count


class Theirs:
    """nanoGPT's setting, step by step."""

    def __init__(self, text: str, steps: int, seed: int) -> None:
        self.numbers = {character: number for number, character in enumerate(sorted(set(text)))}
        self.ids, self.steps, self.step = self.encode(text), steps, 0
        torch.manual_seed(seed)
        self.random = torch.Generator().manual_seed(seed)
        self.model = Plain(len(self.numbers))
        every = list(self.model.parameters())
        groups = [
            {"params": [parameter for parameter in every if parameter.ndim == 2], "weight_decay": 0.1},
            {"params": [parameter for parameter in every if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.numbers[character] for character in text])

    def make_step(self) -> None:
        starts = torch.randint(len(self.ids) - CONTEXT, (ROWS,), generator=self.random)
        rows = torch.stack([self.ids[start : start + CONTEXT + 1] for start in starts.tolist()])
        loss = functional.cross_entropy(self.model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def rate(self) -> float:
        warmup = min(100, self.steps // 20)
        if self.step < warmup:
            return 1e-3 * (self.step + 1) / (warmup + 1)
        done = (self.step - warmup) / (self.steps - warmup)
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4

    @torch.no_grad()
    def loss(self, text: str) -> float:
        ids = self.encode(text)
        count = (len(ids) - 1) // CONTEXT
        given, asked = ids[: count * CONTEXT].view(-1, CONTEXT), ids[1 : count * CONTEXT + 1].view(-1, CONTEXT)
        total = 0.0
        for some, own in zip(given.split(256), asked.split(256), strict=True):
            total += float(functional.cross_entropy(self.model(some).flatten(0, 1), own.flatten(), reduction="sum"))
        return total / (count * CONTEXT)


class Plain(nn.Module):
    """Its model."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, D_MODEL), nn.Embedding(CONTEXT, D_MODEL)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(D_MODEL, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("output.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return functional.linear(self.norm(hidden), self.tokens.weight)


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(D_MODEL, bias=False), nn.LayerNorm(D_MODEL, bias=False)
        self.all_three = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False)
        self.output = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.widen, self.narrow = (
            nn.Linear(D_MODEL, 4 * D_MODEL, bias=False),
            nn.Linear(4 * D_MODEL, D_MODEL, bias=False),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, _ = hidden.shape
        parts: Any = self.all_three(self.first(hidden)).split(D_MODEL, dim=2)
        query, key, value = (part.view(rows, length, HEADS, -1).transpose(1, 2) for part in parts)
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.output(context.transpose(1, 2).flatten(2))
        narrowed: Tensor = self.narrow(functional.gelu(self.widen(self.second(hidden))))
        return hidden + narrowed


if __name__ == "__main__":
    sys.exit(main())
