"""What the fused rendering of attention saves over the explicit one, and what looking costs.

First, `attend` alone: 8 heads, d_key 64, 2,048 queries a call at every length (2,048 / length sentences), forward
alone and forward with backward. Then whole forward passes of our Transformer with a Recorder as tap against none.

    python benchmarks/attend.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import timing
import torch
from sizes import SIZES, build_qkv

from qkv.attention import attend
from qkv.lens import Recorder
from qkv.mask import Mask
from qkv.tap import Site, Tap

HEADS, D_KEY, QUERIES = 8, 64, 2048


class Stepwise(Tap):
    """Asks for the weights and leaves them as they are, which takes the explicit rendering."""

    def replaces(self, site: Site) -> bool:
        return site == "weights"


def main() -> None:
    """Measure and print both tables."""
    parser = timing.build_parser(__doc__, rounds=9)
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--causal", action="store_true", help="attend causally (default: to everything)")
    parser.add_argument(
        "--size", nargs="+", choices=SIZES, default=["small", "base10k"], help="of the models looked at"
    )
    options = parser.parse_args()
    timing.set_up(options)
    measure_renderings(options)
    measure_capture(options)


def measure_renderings(options: Any) -> None:
    """Print what the two renderings take, at each length."""
    mask = Mask(causal=True) if options.causal else None
    rows = []
    for length in options.lengths:
        cells: list[str] = []
        for backward in (False, True):
            turns = {
                "fused": make_turn(length, mask, Tap(), backward),
                "explicit": make_turn(length, mask, Stepwise(), backward),
            }
            seconds = timing.take_turns(turns, options)
            cells += [f"{1000 * statistics.median(taken):.1f}" for taken in seconds.values()]
            cells.append(timing.format_speed_up(seconds, "fused", "explicit"))
        rows.append([length, *cells])
    print(f"{'Causal' if options.causal else 'Unmasked'} attention, milliseconds\n")
    forward = ["fused", "explicit", "fused, times as fast"]
    timing.print_table(
        ["length", *(f"forward: {head}" for head in forward), *(f"and backward: {h}" for h in forward)], rows
    )


def make_turn(length: int, mask: Mask | None, tap: Tap, backward: bool) -> Callable[[], None]:
    """Return one call of `attend`, with its backward pass if asked."""
    shape = max(1, QUERIES // length), HEADS, length, D_KEY
    inputs = [torch.randn(shape, requires_grad=backward) for _ in range(3)]
    upstream = torch.randn(shape)

    def run() -> None:
        context = attend(*inputs, mask=mask, tap=tap)
        if backward:
            torch.autograd.grad(context, inputs, upstream)

    return run


@torch.no_grad()
def measure_capture(options: Any) -> None:
    """Print what a forward pass takes with a Recorder, against without."""
    rows = []
    for name in options.size:
        model = build_qkv(SIZES[name]).eval()
        for batch, length in ((1, 16), (1, 128), (16, 16), (16, 128)):
            source, target = torch.randint(4, SIZES[name].vocab, (2, batch, length))

            def plain(source: Any = source, target: Any = target, model: Any = model) -> None:
                model(source, target)

            def looked(source: Any = source, target: Any = target, model: Any = model) -> None:
                model(source, target, tap=Recorder())

            seconds = timing.take_turns({"plain": plain, "looked": looked}, options)
            cells = [f"{1000 * statistics.median(taken):.1f}" for taken in seconds.values()]
            rows.append(
                [f"{name}, batch {batch}, length {length}", *cells, timing.format_cost(seconds, "looked", "plain")]
            )
    print("A forward pass, milliseconds\n")
    timing.print_table(["", "plain", "looked into", "looking costs"], rows)


if __name__ == "__main__":
    sys.exit(main())
