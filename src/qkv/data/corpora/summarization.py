"""Texts and their summaries: docstrings and functions of installed packages, and abstracts of papers."""

from __future__ import annotations

import ast
import contextlib
import gzip
import importlib.util
import io
import json
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

from qkv.data.corpora.fetch import get_cache_folder, read_content, save
from qkv.data.corpora.info import CorpusInfo, CorpusSelection
from qkv.data.text.pairs import Pair, decode_lines
from qkv.errors import CorpusError

STANDARD_LIBRARY = "the standard library"
PACKAGES = {
    "train": (STANDARD_LIBRARY, "torch", "sympy", "huggingface_hub", "fsspec", "setuptools", "mpmath", "jinja2",
              "click"),
    "valid": ("numpy",),
    "test": ("networkx",),
}  # fmt: skip
"""The packages of each split: those that an installation of torch and of this package includes."""

_EXTRACTION_VERSION = 1  # increased whenever the pairs found in the same source change
_SUMMARY, _BODY, _CODE = (3, 30), 20, 8  # words
_EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "_vendor",
    "vendor",
}
_SECTION = re.compile(
    r"(args|arguments|parameters|params|returns?|raises|yields|examples?|notes?|references|see also|shape|attributes|"
    r"keyword args|keyword arguments|warnings?|other parameters|keywords)\b[^.]{0,20}(:|$)",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"[-=~^*\"']{3,}$")
_NON_PROSE_PREFIXES = (">>>", "..", ":", "* ", "- ", "+", "|", "$", "1.")


_Node: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
_Extractor: TypeAlias = Callable[[_Node], Iterator[Pair]]


def read_docstrings(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the descriptions in docstrings, and their summary lines (PEP 257); no package is in two splits.

    Training pairs with a side that is held out are left out. The source is read as text and nothing is imported.
    """
    return _read_split_without_leakage(info.name, selection.split, _extract_prose)


def read_code(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read functions without their docstrings, each on one line as `ast.unparse` writes it, and their summary lines.

    Splits and held-out pairs are as in `read_docstrings`.
    """
    return _read_split_without_leakage(info.name, selection.split, _extract_function)


def _read_split_without_leakage(corpus: str, split: str, extract: _Extractor) -> list[Pair]:
    pairs = _read_split(corpus, split, extract)
    if split == "train":
        held_out = [pair for other in ("valid", "test") for pair in _read_split(corpus, other, extract)]
        bodies, summaries = {body for body, _ in held_out}, {summary for _, summary in held_out}
        pairs = [pair for pair in pairs if pair[0] not in bodies and pair[1] not in summaries]
    return pairs


def _read_split(corpus: str, split: str, extract: _Extractor) -> list[Pair]:
    return list(dict.fromkeys(pair for package in PACKAGES[split] for pair in _read_package(corpus, package, extract)))


def _read_package(corpus: str, package: str, extract: _Extractor) -> list[Pair]:
    """Read the pairs of one package, from its source the first time, then from the cache."""
    folder, edition = _locate_package(corpus, package)
    name = package.replace(" ", "-")
    kept = get_cache_folder() / "corpora" / corpus / f"{name}-{edition}-{_EXTRACTION_VERSION}.jsonl.gz"
    if kept.is_file():
        with contextlib.suppress(OSError, EOFError, zlib.error):  # a damaged file is rebuilt
            lines = decode_lines(io.BytesIO(gzip.decompress(kept.read_bytes())), str(kept))
            return [(body, summary) for body, summary in map(json.loads, lines)]
    pairs = list(_extract_pairs(folder, extract))
    text = "".join(json.dumps(pair) + "\n" for pair in pairs)
    save(kept, gzip.compress(text.encode(), mtime=0))
    return pairs


def _locate_package(corpus: str, package: str) -> tuple[Path, str]:
    """Return the source folder of a package, and its version."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib")), sysconfig.get_python_version()
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise CorpusError(
            f"the corpus {corpus} needs the package {package}, which is not installed: pip install {package}"
        )
    try:
        edition = version(package)
    except PackageNotFoundError:
        edition = "unknown"
    return Path(found.submodule_search_locations[0]), edition


def _extract_pairs(folder: Path, extract: _Extractor) -> Iterator[Pair]:
    """Yield the pairs of all modules below a folder, in the order of their names."""
    for path in sorted(folder.rglob("*.py"), key=lambda one: one.relative_to(folder).as_posix()):
        if _EXCLUDED_FOLDERS & {*path.relative_to(folder).parts}:
            continue
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # warnings about escapes that a later Python may refuse
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # written for another version of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                yield from extract(node)


def _split_summary(node: _Node) -> tuple[str, list[str]]:
    """Return the summary line of a docstring, "" if it has none, and its other paragraphs."""
    first, *rest = re.split(r"\n\s*\n", (ast.get_docstring(node) or "").strip())
    summary = " ".join(first.split())
    fits = _SUMMARY[0] <= len(summary.split()) <= _SUMMARY[1] and not first.startswith(_NON_PROSE_PREFIXES)
    return (summary if fits else ""), rest


def _extract_function(node: _Node) -> Iterator[Pair]:
    """Yield a function's code without its docstring, and the summary line of the docstring."""
    if isinstance(node, ast.ClassDef | ast.Module):
        return
    summary, _ = _split_summary(node)
    if summary:
        node.body = node.body[1:]  # the docstring is the first statement
        line = " ".join(ast.unparse(node).split()) if node.body else ""
        if len(line.split()) >= _CODE:
            yield line, summary


def _extract_prose(node: _Node) -> Iterator[Pair]:
    """Yield the prose of a docstring and its summary line, if it has both."""
    summary, rest = _split_summary(node)
    if not summary:
        return
    prose = []
    for paragraph in rest:
        lines = paragraph.splitlines()
        if _SECTION.match(paragraph.strip()) or (len(lines) > 1 and _UNDERLINE.match(lines[1].strip())):
            break  # the following sections describe arguments one by one
        if not paragraph.startswith((" ", "\t", *_NON_PROSE_PREFIXES)):
            prose.append(" ".join(paragraph.split()))
    body = " ".join(prose)
    if len(body.split()) >= _BODY:
        yield body, summary


def read_scitldr(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read abstracts and their summaries in one sentence, a pair for each summary."""
    name = {"valid": "dev"}.get(selection.split, selection.split)
    (file,) = (file for file in info.files if file.path.endswith(f"/{name}.jsonl.gz"))
    pairs = []
    for line in decode_lines(io.BytesIO(read_content(file, info.name)), file.path):
        record = json.loads(line)
        pairs += [(" ".join(record["source"]), summary) for summary in record["target"]]
    return pairs
