"""Output tokens a second of greedy and beam search, with a cache: ours, and transformers' generate with Marian.

Random weights and random sources of 10 to 16 tokens; every answer is forced to be 20 tokens long, so both make the
same number of steps (which is checked). Encoding counts. Beams follow the same rules ("hugging-face").

    python benchmarks/decoding.py --size base10k
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import timing
import torch
from sizes import BOS, EOS, PAD, SIZES, Size, build_marian, build_qkv
from torch import Tensor

from qkv.decoding import Beam, DecodingConfig, Greedy, LengthLimit, LengthPenalty, generate_batch
from qkv.generation_rules import GenerationRules
from qkv.models import SequenceModel

VARIANTS = ["ours", "Marian sdpa", "Marian eager"]
OUTPUT_TOKENS = 20  # tokens of every answer


def main() -> None:
    """Measure and print a table for each size."""
    parser = timing.build_parser(__doc__, rounds=5)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["small", "base10k"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64], help="sentences at a time")
    parser.add_argument("--beam", nargs="+", type=int, default=[1, 4], help="1 is greedy")
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
    models = {variant: build(variant, size) for variant in options.variants}
    rows = []
    for beam in options.beam:
        for batch in options.batch:
            source, mask = make_sources(batch, size.vocab)
            turns = {variant: make_turn(model, source, mask, beam) for variant, model in models.items()}
            seconds = timing.take_turns(turns, options)
            rates = [f"{batch * OUTPUT_TOKENS / statistics.median(seconds[variant]):,.0f}" for variant in turns]
            peers = [timing.format_speed_up(seconds, options.variants[0], peer) for peer in options.variants[1:]]
            rows.append([f"{f'beam {beam}' if beam > 1 else 'greedy'}, batch {batch}", *rates, *peers])
    print(f"{name}: {size}, float32, output tokens a second\n")
    faster = [f"{options.variants[0]}, times as fast as {peer}" for peer in options.variants[1:]]
    timing.print_table(["", *options.variants, *faster], rows)


def make_sources(batch: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Return random sources (batch, 16) and their mask; the first is 16 long."""
    lengths = torch.randint(10, 17, (batch, 1))
    lengths[0] = 16
    mask = torch.arange(16) < lengths
    return torch.randint(EOS + 2, vocab, (batch, 16)).masked_fill(~mask, PAD), mask


def build(variant: str, size: Size) -> Any:
    """Return the model of a variant, in evaluation mode."""
    return (build_qkv(size) if variant == "ours" else build_marian(size, variant.split()[1])).eval()


def make_turn(model: Any, source: Tensor, mask: Tensor, beam: int) -> Callable[[], None]:
    """Return what decodes the sources once, and sees that the answers are as long as they should be."""
    if isinstance(model, SequenceModel):
        method = Beam(beam, LengthPenalty("power", 1.0), rules="hugging-face") if beam > 1 else Greedy()
        decoding = DecodingConfig(method, LengthLimit(0, OUTPUT_TOKENS, min_new_tokens=OUTPUT_TOKENS))

        def our_turn() -> None:
            found = generate_batch(
                model, source, mask, rules=GenerationRules(bos=BOS, eos=EOS, suppress_tokens=[PAD]), decoding=decoding
            )
            assert all(len(hypotheses[0].tokens) == OUTPUT_TOKENS for hypotheses in found)

        return our_turn

    def their_turn() -> None:
        found = model.generate(
            source, attention_mask=mask.long(), num_beams=beam, do_sample=False, max_new_tokens=OUTPUT_TOKENS,
            min_new_tokens=OUTPUT_TOKENS, use_cache=True,
        )  # fmt: skip
        assert found.shape == (len(source), 1 + OUTPUT_TOKENS)

    return their_turn


if __name__ == "__main__":
    sys.exit(main())
