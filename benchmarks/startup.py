"""From the start of a process to an answer: what opening a published model takes, and what memory.

Every round starts one process for each variant, which opens the model and answers, and says after each step how much
time it has taken since its start, imports included, and how large it has been. A model that writes answers with one
token and then, from the text again, with 64; an encoder with the vector of a sentence. Greedy, with a cache, float32.

    python benchmarks/startup.py path/to/SmolLM2.gguf path/to/all-MiniLM-L6-v2

Variants: ours, also with the parameters kept as `qkv run --dtype` has it; transformers, also in bfloat16; xllamacpp,
which is llama.cpp and computes with the quantised blocks themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PROMPT, SENTENCE, TOKENS = "The capital of France is", "The cat sat on the mat.", 64

ReportStep = Callable[[str], None]
"""Notes that a step is done."""


def main() -> None:
    """Measure and print a table for each model; or be the process that is measured."""
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:5])
        return
    import timing  # brings torch, which not every variant needs

    parser = timing.build_parser(__doc__, rounds=3)
    parser.add_argument("models", nargs="+", type=Path, help="folders, or files of GGUF")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["ours", "transformers", "xllamacpp"])
    options = parser.parse_args()
    timing.set_up(options)
    for model in options.models:
        compare(model, options)


def compare(model: Path, options: Any) -> None:
    """Print one model's table: medians over the rounds."""
    import timing

    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in options.variants}
    for turn in range(options.rounds + 1):  # the first is not counted: it reads the files from the disk
        for name in options.variants:
            taken = measure_variant(name, model, options.threads)
            if taken is None:
                found.pop(name, None)
                options.variants = [one for one in options.variants if one != name]
            elif turn:
                found[name].append(taken)
    files = [model] if model.is_file() else [*model.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{model.name}, {size:.0f} MiB of weights\n")
    steps = list(dict.fromkeys(step for rounds in found.values() for taken in rounds for step in taken))
    rows = []
    for name, rounds in found.items():
        cells = []
        for step in steps:
            own = [taken[step] for taken in rounds if step in taken]
            cells.append("" if not own else f"{statistics.median(seconds for seconds, _ in own):.2f}")
        started, ended = (statistics.median(taken[step][1] for taken in rounds) for step in ("imported", steps[-1]))
        rows.append([name, *cells, f"{started:.0f}", f"{ended:.0f}", f"{(ended - started) / size:.2f}"])
    timing.print_table(
        ["seconds until", *steps, "MiB, imported", "MiB, greatest", "what it added, times the file"], rows
    )


def measure_variant(name: str, model: Path, threads: int) -> dict[str, list[float]] | None:
    """Seconds and MiB by step of one process; None, with a message, if the variant cannot open this model."""
    command = [sys.executable, __file__, "--child", name, str(model), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        print(f"{name} is left out: {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}\n")
        return None
    taken: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return taken


def run_child(name: str, model: str, threads: str) -> None:
    """Open and answer once, and print what each step took as JSON."""
    clock = time.process_time if threads == "1" else time.perf_counter
    zero = 0.0 if threads == "1" else time.perf_counter() - _process_age()
    taken: dict[str, tuple[float, float]] = {}

    def tell(step: str) -> None:
        taken[step] = clock() - zero, _peak_memory()

    VARIANTS[name](Path(model), int(threads), tell)
    print(json.dumps(taken))


def _process_age() -> float:
    """Seconds since this process was started."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks


def _peak_memory() -> float:
    """MiB that this process has had at most; getrusage would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 2**10


def run_qkv(model: Path, threads: int, tell: ReportStep, dtype: str = "float32") -> None:
    """As `qkv run` does it."""
    import torch

    from qkv.decoding import DecodingConfig, Greedy, LengthLimit
    from qkv.tasks import TextGenerator, load

    torch.set_num_threads(threads)
    tell("imported")
    opened = load(model, dtype=dtype)  # type: ignore[arg-type]
    tell("opened")
    if not isinstance(opened, TextGenerator):
        list(opened.predict_ranked([SENTENCE]))
        tell("answered")
        return
    for step, length in (("first token", 1), (f"{TOKENS} tokens", TOKENS)):
        [[answer]] = opened.predict_ranked(
            [PROMPT], DecodingConfig(Greedy(), LengthLimit(0.0, length, min_new_tokens=length))
        )
        assert len(answer.tokens) > length  # after those of the text
        tell(step)


def run_transformers(model: Path, threads: int, tell: ReportStep, dtype: str = "float32") -> None:
    """AutoModel and AutoTokenizer, and `generate`."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tell("imported")
    place = str(model) if model.is_dir() else str(model.parent)
    more = {} if model.is_dir() else {"gguf_file": model.name}
    writes = not model.is_dir() or "CausalLM" in (model / "config.json").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(place, **more)
    kind = AutoModelForCausalLM if writes else AutoModel
    opened = kind.from_pretrained(place, dtype=getattr(torch, dtype), **more).eval()
    tell("opened")
    with torch.no_grad():
        if not writes:
            opened(**tokenizer(SENTENCE, return_tensors="pt")).last_hidden_state.mean(1).tolist()
            tell("answered")
            return
        for step, length in (("first token", 1), (f"{TOKENS} tokens", TOKENS)):
            given = tokenizer(PROMPT, return_tensors="pt")
            before = given["input_ids"].shape[1]
            made = opened.generate(**given, do_sample=False, min_new_tokens=length, max_new_tokens=length)
            tokenizer.decode(made[0])
            assert made.shape[1] == before + length
            tell(step)


def run_xllamacpp(model: Path, threads: int, tell: ReportStep) -> None:
    """llama.cpp's own server, in the process."""
    import xllamacpp as library

    options = library.CommonParams()
    options.model.path = str(model)
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.n_ctx, options.n_parallel, options.warmup = 256, 1, False
    tell("imported")
    server = library.Server(options)
    tell("opened")
    asked = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    for step, length in (("first token", 1), (f"{TOKENS} tokens", TOKENS)):
        made = server.handle_completions({**asked, "n_predict": length})
        assert made["usage"]["completion_tokens"] == length
        tell(step)


VARIANTS: dict[str, Callable[[Path, int, ReportStep], None]] = {
    "ours": run_qkv,
    **{f"ours-{numbers}": partial(run_qkv, dtype=numbers) for numbers in ("bfloat16", "int8", "stored", "blocks")},
    "transformers": run_transformers,
    "transformers-bfloat16": partial(run_transformers, dtype="bfloat16"),
    "xllamacpp": run_xllamacpp,
}

if __name__ == "__main__":
    main()
