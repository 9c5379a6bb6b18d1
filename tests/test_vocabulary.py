"""Names are the field's words: retired ones are refused with the word to use, and functions are verbs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "qkv").rglob("*.py"))

RETIRED = {
    "Crew": "WorkerPool",
    "Standing": "TrainState",
    "Shelf": "CheckpointManager",
    "Lesson": "TrainingSetup",
    "lesson": "build_training_setup",
    "Judge": "Validator",
    "Album": "ImageDataset",
    "Wishes": "LineConstraints",
    "Wanted": "OutputConstraints",
    "Runner": "TextGenerator",
    "Predictor": "EncoderModel",
    "Matcher": "ImageTextModel",
    "Agent": "DecisionTransformerAgent",
    "Looked": "Trace",
    "Opened": "TaskModel",
    "Hearing": "SpeechFrontend",
    "Towers": "DualEncoder",
    "Placing": "AttentionInputs",
    "Together": "Compose",
    "Why": "Explanation",
    "Reason": "TokenEffect",
    "Pointed": "CopyAttribution",
    "Played": "Rollouts",
    "Shown": "TrajectoryNormalizer",
    "Cleaning": "CleaningConfig",
    "widen": "up_proj",
    "narrow": "down_proj",
    "reads_apart": "has_encoder",
    "unread": "n_truncated",
    "unled": "missing_prefix",
    "led_by": "prefixes",
    "begun_by": "load_base_model",
    "foretold": "predicted_actions",
    "normaliser": "logsumexp",
    "processes": "workers",
    "accumulate": "gradient_accumulation",
    "answer_to": "decode",
    "initialise": "init_weights",
}
"""Names that were, and what they are called now."""

PARTICIPLE = re.compile(r"^[a-z]+(?:ed|ing)$")
NO_PARTICIPLES = {"embed", "feed", "speed", "seed", "need", "string", "padding", "embedding"}
"""Verbs and nouns that only end like participles."""

RETIRED_KEYS = {
    r"training\.(steps|epochs|minutes|processes|accumulate|saving)\b": "training.max_steps, max_epochs, max_minutes, "
    "workers, gradient_accumulation, checkpointing",
    r"data\.without\b": "data.exclude",
    r"kind: from\b": "init_from",
    r"better: (lower|higher)": "mode: min or max",
    r"--(must|never|terms|before|numbers|legacy|with|beside)\b": "--include, --exclude, --glossary, --prefix, --dtype, "
    "--allow-pickle, --option, --compare",
}


def list_definitions(path: Path) -> list[tuple[int, str, bool]]:
    """Each definition in a file: its line, its name, and whether it is a function that a caller calls."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
            found.append((node.lineno, node.name, not decorators & {"property", "cached_property", "overload"}))
        elif isinstance(node, ast.ClassDef):
            found.append((node.lineno, node.name, False))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.append((node.lineno, node.target.id, False))
        elif isinstance(node, ast.arg):
            found.append((node.lineno, node.arg, False))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "qkv")))
def test_names_are_those_of_the_field(path: Path) -> None:
    wrong = []
    for line, name, is_function in list_definitions(path):
        if name in RETIRED:
            wrong.append(f"{path}:{line}: {name} is retired; use {RETIRED[name]}")
        if is_function and not name.startswith("_") and PARTICIPLE.match(name) and name not in NO_PARTICIPLES:
            wrong.append(f"{path}:{line}: {name}() is a participle; name the function by a verb")
    assert not wrong, "\n".join(wrong)


def test_documents_and_recipes_use_todays_keys_and_flags() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src" / "qkv" / "recipes").glob("*.yaml")]
    wrong = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for pattern, instead in RETIRED_KEYS.items():
            wrong += [f"{page}: {found[0]} is retired; use {instead}" for found in re.finditer(pattern, text)]
    assert not wrong, "\n".join(wrong)
