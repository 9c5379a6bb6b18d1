"""How the source has grown: counts of a checkout's Python, side by side for any number of checkouts.

    python benchmarks/source.py . ../before

Counted in src/qkv: functions with more than 8 parameters (`attend`, the presets and the click commands aside),
`isinstance` checks on model classes in the command, the page and the evaluation, lines, lines of code (neither blank
nor a comment nor a docstring), and files of more than 400 lines of code.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from pathlib import Path

MAX_PARAMETERS = 8
MAX_LINES = 400
MAY_BE_WIDE = ("attend.py", "attention.py", "presets.py", "cli")
ASKS_NO_CLASS = ("cli", "view", "evaluat")  # parts of the paths whose code knows models by their capabilities only


def count_parameters(function: ast.FunctionDef) -> int:
    """Return how many parameters a function has, self and cls aside."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def list_model_classes(trees: dict[Path, ast.Module]) -> set[str]:
    """Return the names of the classes of models that answer: those with a method `look`, and their subclasses."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {one.name for one in classes if any(getattr(part, "name", "") == "look" for part in one.body)}
    while more := {one.name for one in classes if {ast.unparse(base) for base in one.bases} & found} - found:
        found |= more
    return found


def count_model_checks(tree: ast.Module, classes: set[str]) -> int:
    """Return how many `isinstance` calls of a file name a class of models."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance")
    return sum(
        any(
            isinstance(part, (ast.Name, ast.Attribute)) and ast.unparse(part).rpartition(".")[2] in classes
            for part in ast.walk(call.args[1])
        )
        for call in calls
    )


def count_code_lines(text: str, tree: ast.Module) -> int:
    """Return the number of lines that hold code."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def measure(root: Path) -> dict[str, int]:
    """Return the counts of one checkout by name."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((root / "src" / "qkv").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    classes = list_model_classes(trees)
    wide = checks = 0
    for path, tree in trees.items():
        name = str(path.relative_to(root / "src" / "qkv"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        if not name.startswith(MAY_BE_WIDE):
            wide += sum(count_parameters(one) > MAX_PARAMETERS for one in functions)
        if any(part in name for part in ASKS_NO_CLASS):
            checks += count_model_checks(tree, classes)
    code = {path: count_code_lines(text, trees[path]) for path, text in texts.items()}
    return {
        f"functions with more than {MAX_PARAMETERS} parameters": wide,
        "isinstance checks on model classes in the command, the page and the evaluation": checks,
        "files": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "lines of code": sum(code.values()),
        f"files of more than {MAX_LINES} lines of code": sum(count > MAX_LINES for count in code.values()),
    }


def main() -> None:
    """Print a table with a column for each checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", nargs="+", type=Path)
    checkouts = parser.parse_args().checkouts
    columns = [measure(root) for root in checkouts]
    print(f"| | {' | '.join(str(root) for root in checkouts)} |")
    print(f"| --- | {' | '.join('---:' for _ in checkouts)} |")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:,}' for column in columns)} |")


if __name__ == "__main__":
    main()
