"""What looking costs: a capture beside a forward pass, statistics by length, and what others give on this machine.

First, forward passes of our Transformer, plain and with a Recorder; and of transformers' Marian of the same size,
fused, and eager with the weights returned, which is how others look; the same for a decoder and transformers' GPT-2.
Then, by length, one causal attention: the
kernel, all its statistics, a row and a tile of 256 x 256 on demand, and what is kept beside what the matrix would take.
Then what the page about a decoder's pass takes: its document, and the file. Last, what a page of BertViz takes, if it
is installed, for weights of 12 layers and 12 heads.

    python benchmarks/capture.py
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import timing
import torch
from sizes import DECODERS, SIZES, build_gpt2, build_marian, build_qkv, build_qkv_decoder
from torch import Tensor

from qkv.attention import attend
from qkv.lens import AttentionStatistics, AttentionTrace, Recorder, build_trace, compute_statistics
from qkv.mask import Mask
from qkv.models import SequenceModel
from qkv.tap import Tap
from qkv.view.document import build_document
from qkv.view.html import render_html

D_KEY, TILE = 64, 256


def main() -> None:
    """Measure and print the tables."""
    parser = timing.build_parser(__doc__, rounds=9)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["small"], help="of the models looked at")
    parser.add_argument("--batches", nargs="+", default=["1x16", "1x128", "16x32", "1x512"], help="rows x length")
    parser.add_argument("--decoder", choices=DECODERS, default="gpt2", help="the decoder looked at (%(default)s)")
    parser.add_argument("--decoder-batches", nargs="+", default=["1x16", "1x512", "4x512"], help="rows x length")
    parser.add_argument("--page-lengths", nargs="+", type=int, default=[512], help="of the pages")
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192, 32768], help="of the attention")
    parser.add_argument("--heads", type=int, default=1, help="of the attention (%(default)s)")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=["marian", "decoder", "bertviz", "statistics", "page"]
    )
    options = parser.parse_args()
    timing.set_up(options)
    measure_captures(options)
    if "decoder" not in options.without:
        measure_decoder_captures(options)
    if "statistics" not in options.without:
        measure_by_length(options)
    if "page" not in options.without:
        measure_pages(options)
    if "bertviz" not in options.without:
        measure_bertviz(128 if "tiny" not in options.size else 8)


@torch.no_grad()
def measure_captures(options: Any) -> None:
    """Print what a forward pass takes with a Recorder, and with the weights that others return."""
    rows = []
    for name in options.size:
        size = SIZES[name]
        model = build_qkv(size).eval()
        theirs = (
            {} if "marian" in options.without else {kind: build_marian(size, kind).eval() for kind in ("sdpa", "eager")}
        )
        for shape in options.batches:
            batch, length = map(int, shape.split("x"))
            source, target = torch.randint(4, size.vocab, (2, batch, length))
            turns = {
                "plain": make_our_turn(model, source, target, Tap),
                "looked": make_our_turn(model, source, target, Recorder),
            }
            turns |= {kind: make_their_turn(other, source, target, kind == "eager") for kind, other in theirs.items()}
            cells, seconds = time_turns(turns, options)
            costs = [timing.format_cost(seconds, "looked", "plain")]
            costs += [timing.format_cost(seconds, "eager", "sdpa")] if theirs else []
            rows.append([f"{name}, batch {batch}, length {length}", *cells, *costs])
    heads = ["plain", "looked into"] + ([] if "marian" in options.without else ["Marian", "Marian, eager with weights"])
    print("A forward pass: milliseconds, the most memory it takes beside the model in MiB, and what looking costs\n")
    more = [] if "marian" in options.without else ["Marian, times"]
    timing.print_table(["", *heads, "ours, times", *more], rows)


@torch.no_grad()
def measure_decoder_captures(options: Any) -> None:
    """Print the same for a decoder, beside GPT-2 of transformers in the same size."""
    rows, model = [], build_qkv_decoder(DECODERS[options.decoder]).eval()
    theirs = {kind: build_gpt2(DECODERS[options.decoder], kind).eval() for kind in ("sdpa", "eager")}
    for shape in options.decoder_batches:
        ids = torch.randint(4, DECODERS[options.decoder].vocab, tuple(map(int, shape.split("x"))))
        turns: dict[str, Callable[[], object]] = {
            "plain": partial(model, target=ids),
            "looked": lambda ids=ids: run_with_tap(partial(model, target=ids), Recorder()),
            "sdpa": partial(theirs["sdpa"], ids, use_cache=False),
            "eager": partial(theirs["eager"], ids, use_cache=False, output_attentions=True),
        }
        cells, seconds = time_turns(turns, options)
        costs = [timing.format_cost(seconds, "looked", "plain"), timing.format_cost(seconds, "eager", "sdpa")]
        rows.append([f"{options.decoder}, {shape}", *cells, *costs])
    print("A decoder's forward pass: the same\n")
    heads = ["plain", "looked into", "GPT-2", "GPT-2, eager with weights", "ours, times", "GPT-2, times"]
    timing.print_table(["", *heads], rows)


def time_turns(turns: dict[str, Callable[[], object]], options: Any) -> tuple[list[str], timing.Seconds]:
    """Of each variant its time and its memory as a cell of a table, and the seconds of all rounds."""
    sizes = {name: timing.measure_memory(run) / 2**20 for name, run in turns.items()}
    seconds = timing.take_turns(turns, options)
    cells = [f"{1000 * statistics.median(taken):.1f} ms, {sizes[name]:,.0f} MiB" for name, taken in seconds.items()]
    return cells, seconds


def run_with_tap(run: Callable[..., object], tap: Tap) -> object:
    """A pass with a tap, and all that the tap keeps of it."""
    return run(tap=tap), tap


def make_our_turn(model: SequenceModel, source: Tensor, target: Tensor, tap: type[Tap]) -> Callable[[], object]:
    """A forward pass of ours with a fresh tap."""
    return lambda: run_with_tap(partial(model, source, target), tap())


def make_their_turn(model: Any, source: Tensor, target: Tensor, weights: bool) -> Callable[[], object]:
    """A forward pass of transformers' model, with the weights of every attention returned if asked."""
    return lambda: model(input_ids=source, decoder_input_ids=target, output_attentions=weights)


@torch.no_grad()
def measure_by_length(options: Any) -> None:
    """Print what the statistics of one causal attention take, at each length."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for length in options.lengths:
        tensors, recorder = torch.randn(3, 1, options.heads, length, D_KEY).unbind(0), Recorder()
        started = clock()
        attend(*tensors, mask=Mask(causal=True), tap=recorder.at("here"))
        kernel = clock() - started
        attention = build_trace(recorder, torch.nn.Module())["here"]
        started = clock()
        found = compute_statistics(attention)
        counted = clock() - started
        rows.append(
            [
                f"{length:,}",
                f"{kernel:.2f}",
                f"{counted:.2f}",
                f"{1e9 * counted / (options.heads * length**2 / 2):.1f}",
                *(f"{1000 * one:.1f}" for one in time_on_demand(attention, found, clock)),
                f"{count_kept_bytes(found) / 2**20:.1f}",
                f"{4 * options.heads * length**2 / 2**20:,.0f}",
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f}",
            ]
        )
    print(f"Statistics of one causal attention, {options.heads} head(s), d_key {D_KEY}, float32\n")
    heads = ["kernel, s", "statistics, s", "ns a score", "row, ms", "tile, ms", "tile with statistics, ms"]
    timing.print_table(["length", *heads, "kept, MiB", "matrix, MiB", "process so far, MiB"], rows)


@torch.no_grad()
def measure_pages(options: Any) -> None:
    """Print what our page about a decoder's pass takes: its document, the text of the file, and its size."""
    rows, model = [], build_qkv_decoder(DECODERS[options.decoder]).eval()
    for length in options.page_lengths:
        ids, recorder = torch.randint(4, DECODERS[options.decoder].vocab, (1, length)), Recorder()
        logits = model(target=ids, tap=recorder)
        trace = build_trace(recorder, model, logits=logits, target=ids)
        described, taken = [], []
        for _ in range(options.rounds):
            started = time.process_time()
            made = build_document(trace)
            taken.append(time.process_time() - started)
            started = time.process_time()
            size = len(render_html(made))
            described.append(time.process_time() - started)
        cells = [f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in (taken, described)]
        rows.append([f"{options.decoder}, length {length}", *cells, f"{size / 1e6:.1f}"])
    print("Our page, processor time\n")
    timing.print_table(["", "document, s", "file, s", "MB"], rows)


def time_on_demand(attention: AttentionTrace, found: AttentionStatistics, clock: Callable[[], float]) -> list[float]:
    """Seconds for a whole row, for a tile by itself, and for one whose rows' normalisers are known."""
    last = attention.keys - 1
    rows, keys = (max(0, last - TILE), last), (last // 3, min(last // 3 + TILE, last))
    return [
        time_call(lambda: attention.compute_weights(0, [last]), clock),
        time_call(lambda: attention.tile(0, rows, keys), clock),
        time_call(lambda: attention.tile(0, rows, keys, found.logsumexp), clock),
    ]


def time_call(run: Callable[[], object], clock: Callable[[], float], rounds: int = 5) -> float:
    """The median of some runs after one that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        started = clock()
        run()
        taken.append(clock() - started)
    return statistics.median(taken[1:])


def count_kept_bytes(found: AttentionStatistics) -> int:
    """The bytes of all statistics."""
    values = [getattr(found, one.name) for one in fields(found)]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def measure_bertviz(longest: int) -> None:
    """Print how large BertViz's pages of 12 layers x 12 heads get, and how long they take to write."""
    try:
        from bertviz import head_view, model_view
    except ImportError as error:
        print(f"BertViz cannot be imported ({error}), and is left out\n")
        return
    rows = []
    for length in (length for length in (8, 32, 64, 128, 256) if length <= longest):
        weights = [torch.rand(1, 12, length, length).softmax(dim=-1) for _ in range(12)]
        tokens = [f"t{number}" for number in range(length)]
        for view in (head_view, model_view):
            started = time.perf_counter()
            page = view(weights, tokens, html_action="return").data
            taken = time.perf_counter() - started
            rows.append([f"{view.__name__}, length {length}", f"{len(page) / 2**20:.1f}", f"{taken:.1f}"])
    print("BertViz, 12 layers x 12 heads, wall time\n")
    timing.print_table(["", "page, MiB", "to write, s"], rows)


if __name__ == "__main__":
    main()
