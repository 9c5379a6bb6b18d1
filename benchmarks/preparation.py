"""How long a corpus of pairs takes from two text files to tokens: reading, tokenizers, token store.

    QKV_DATA=... python benchmarks/preparation.py [--pairs 1000000]

The pairs are those of Tatoeba (tatoeba-deu-eng in QKV_DATA), repeated with a number put before each sentence so that no
two are equal. One thread; the tokenizer is the default of the recipe translation, one BPE vocabulary of 8,000.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from qkv.tasks.fitting import measure_peak_memory
from qkv.tasks.own_data import OwnData
from qkv.tasks.recipes import read_recipe
from qkv.tasks.registry import TRAINABLE_TASKS


def write_pairs(folder: Path, count: int) -> list[Path]:
    """Write `count` pairs as two files of lines."""
    [archive] = (Path(os.environ["QKV_DATA"]) / "tatoeba-deu-eng").glob("*.gz")
    with gzip.open(archive, "rt", encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t")[:2] for line in file]
    paths = [folder / "train.en", folder / "train.de"]
    for side, path in enumerate(paths):
        with path.open("w", encoding="utf-8") as out:
            for number, pair in enumerate(islice(cycle(pairs), count)):
                out.write(f"{number // len(pairs)} {pair[side]}\n")
    return paths


def main() -> None:
    """Prepare the pairs and print the time and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    count = parser.parse_args().pairs
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        own = OwnData(write_pairs(folder, count))
        changes = ["model.d_model=32", "model.heads=2", "model.d_ff=32", "data.cleaning.max_dropped_fraction=0.5"]
        recipe = read_recipe("translation", changes, own)
        task = TRAINABLE_TASKS[recipe.task]
        wall, cpu = time.perf_counter(), time.process_time()
        splits = task.load_data(recipe)
        read = time.perf_counter() - wall
        task.build_training_setup(recipe, splits, folder / "run", folder / "tokens", False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{count:,} pairs: {wall:.1f} s ({cpu:.1f} s of the processor), {read:.1f} s of them reading")
    print(f"peak memory {measure_peak_memory():,} MB; torch {torch.__version__}")


if __name__ == "__main__":
    main()
