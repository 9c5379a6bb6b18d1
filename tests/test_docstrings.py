"""Docstrings, messages and help texts are plain English: imperative verbs, and no phrase of a private dialect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "qkv"
SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

NOT_YET_CLEAN: list[str] = []
"""Files that still break a rule. A file that has become clean must leave this list."""

NO_VERBS = set(
    "a an the what whether how which where when who whom whose why that this these those its their all any each "
    "every both either neither one two three some several many more most much few half no none nothing everything "
    "something only also not as at by for from in into of off on onto over to under up upon with within without after "
    "before between about beyond through than if it they there so such other another".split()
)
"""Articles, wh-words, quantities, prepositions and pronouns: no imperative sentence begins with one."""

PARTICIPLE_OR_NOUN = re.compile(r"^[a-z-]+(?:ed|ing|[^s]s)$")
VERBS_THAT_LOOK_SO = {"embed", "feed", "seed", "need", "bring", "focus", "bias"}

DIALECT = {
    r"\b(?:is|are|be|was|been) told\b": "receives, is given, knows",
    r"\btells? (?:the|of|its|it|what|whose|when|where)\b": "returns, reports, says",
    r"\bshall\b": "must, should, or the present tense",
    r"\bforet(?:ell|old)": "predict",
    r"\bso many\b": "this many, n",
    r"\bwhat (?:is|was) (?:heard|said|read|seen|shown|looked at|known|left|answered)\b": "the audio, the input",
    r"\bwhat it (?:reads|says|hears|sees|answers|knows|shows)\b": "its input, its output",
    r"\b(?:goes|go|going|went) on\b": "continues",
    r"\bwho(?:ever)? (?:asks|reads|looks|hears|wants|needs|says|gives)\b": "the caller, the reader",
    r"\bwhoever\b": "the caller",
    r"\bof its own accord\b": "automatically",
    r"\banew\b": "again",
    r"(?<!here )\b(?:is|are) no (?!longer|more)[a-z]": "is not a",
    r"\bis there already\b": "already exists",
    r"\bin the manner of\b": "like",
    r"\bnothing (?:is|was) said\b": "by default",
    r"\bbeside\b(?! the point)": "next to, besides, with",
    r"\b(?:at hand|as it were|by itself alone)\b": "available",
    r"\bcut short\b": "truncated",
    r"\bunless (?:told|said|asked)\b": "by default",
    r"\btake[sn]? for granted\b": "assume",
    r"\bwants?\b": "needs, requires",
    r"\bworked out\b": "computed",
    r"\bnot known here\b": "not supported",
    r"\bas (?:it|they) (?:stands?|comes?)\b": "unchanged",
    r"\bstands? (?:in|at|there|where|before|after|around|side by side|within)\b": "is in, represents",
    r"\bsounds\b": "audio, recordings",
    r"\bpictures?\b": "image, figure",
    r"\bmakes? (?:of|up of)\b": "computes from",
    r"\bhinder": "prevent",
    r"\b(?:a|one) (line|token|row|word|number|step|layer|head|key) a \w+": "one ... per ...",
    r"\bpassed by\b": "skipped",
    r"\btaken apart\b": "split",
    r"\bwrit(?:es|ten) down what it hears\b": "transcribe",
    r"\bin turns\b": "interleaved, alternately",
}
"""Phrases of our old dialect, and what to write in their place."""


def find_docstrings(tree: ast.Module) -> Iterator[tuple[ast.Module | ast.ClassDef | ast.FunctionDef, str]]:
    """Yield every module, class and function with its docstring, "" if it has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield node, ast.get_docstring(node) or ""


def has_decorator(node: ast.FunctionDef, *names: str) -> bool:
    """Return whether a function has one of these decorators, wherever they were imported from."""
    return any(ast.unparse(one).partition("(")[0].rpartition(".")[2] in names for one in node.decorator_list)


def find_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring, error message and help text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        messages = [node.exc] if isinstance(node, ast.Raise) and node.exc else []
        messages += (
            [node.value] if isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog") else []
        )
        for message in messages:
            for part in ast.walk(message):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def find_problems(path: Path) -> list[str]:
    """Return what breaks a rule in a file, each with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    problems = []
    for node, text in find_docstrings(tree):
        line, name = getattr(node, "lineno", 1), getattr(node, "name", "the module")
        if not text:
            is_top = node is tree or node in tree.body
            is_public = not name.startswith("_") and not (
                isinstance(node, ast.FunctionDef) and has_decorator(node, "overload")
            )
            if is_top and is_public:
                problems.append(f"{line}: {name} has no docstring")
        elif isinstance(node, ast.FunctionDef) and not has_decorator(node, "property", "cached_property", "setter"):
            first = re.split(r"[\s,;:.]", text, maxsplit=1)[0]
            if (
                not first.isalpha()
                or first.lower() in NO_VERBS
                or (PARTICIPLE_OR_NOUN.match(first.lower()) and first.lower() not in VERBS_THAT_LOOK_SO)
            ):
                problems.append(f"{line}: the docstring of {name} begins with {first!r}; begin with an imperative verb")
    for line, text in find_texts(tree):
        flat = " ".join(text.split())
        for pattern, instead in DIALECT.items():
            if found := re.search(pattern, flat):
                problems.append(f"{line}: {found[0]!r} in {flat[:60]!r}; write: {instead}")
    return problems


@pytest.mark.parametrize("name", SOURCES)
def test_docstrings_and_messages_are_plain_english(name: str) -> None:
    problems = find_problems(SOURCES[name])
    if name in NOT_YET_CLEAN:
        assert problems, f"{name} is clean: take it out of NOT_YET_CLEAN"
    else:
        assert not problems, "\n".join(f"{SOURCES[name]}:{problem}" for problem in problems)


def test_only_existing_files_are_not_yet_clean() -> None:
    assert set(NOT_YET_CLEAN) <= set(SOURCES)


def test_the_rules_find_faults(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        '"""The lines of a file."""\n\n'
        "def count():\n    pass\n\n"
        'def show():\n    """What a model is told."""\n    raise ValueError("a model shall go on")\n\n'
        'def read():\n    """Reading of a file."""\n\n'
        'def write():\n    """Write a file."""\n'
    )
    text = "\n".join(find_problems(source))
    assert all(part in text for part in ("count has no docstring", "'What'", "is told", "shall", "'Reading'"))
    assert "write" not in text.replace("write:", "")
