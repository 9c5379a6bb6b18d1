"""The bytes of a corpus file: from the folder QKV_DATA, from the cache, or from its public source; always checked."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from qkv.data.corpora.info import CorpusFile
from qkv.errors import CorpusError, DownloadError, StorageError
from qkv.files import atomic_write

_TIMEOUT = 30
"""Timeout in seconds."""

_SYSTEM_FOLDER = "/usr/share/datasets"
"""The folder of Debian's data packages, with the same file names."""


def get_cache_folder() -> Path:
    """Return the folder for files that can be rebuilt or downloaded again: QKV_CACHE, or `qkv` in the user's cache
    folder."""
    if chosen := os.environ.get("QKV_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkv"


def find_local(file: CorpusFile) -> Path | None:
    """Find a file in the folder that QKV_DATA names, or among what is installed."""
    folders = [os.environ.get("QKV_DATA") or os.devnull, _SYSTEM_FOLDER]
    return next((path for path in (Path(folder, file.path) for folder in folders) if path.is_file()), None)


def cached_path(file: CorpusFile) -> Path:
    """Return the path of a downloaded file."""
    return get_cache_folder() / "corpora" / Path(file.path).parent / file.url.rsplit("/", 1)[-1]


def read_content(file: CorpusFile, corpus: str) -> bytes:
    """Read the unpacked content of a file and check it against its recorded sha256.

    Raises CorpusError if the file is missing or not as recorded, and DownloadError if it cannot be downloaded.
    """
    if path := find_local(file):
        data = unpack(_read_bytes(path), file)
        if not matches_record(data, file):
            raise CorpusError(
                f"{path} is not the file recorded for the corpus {corpus} (sha256 of its text "
                f"{hashlib.sha256(data).hexdigest()[:12]}…, expected {file.sha256[:12]}…): copy it again, or read it "
                f"as a file of your own"
            )
        return data
    if not file.url:
        raise CorpusError(
            f"the corpus {corpus} needs {file.path}, which cannot be downloaded from here: put it into a folder and "
            f"name that folder in the environment variable QKV_DATA (now {os.environ.get('QKV_DATA') or 'not set'})"
        )
    kept = cached_path(file)
    if kept.is_file() and matches_record(data := unpack(_read_bytes(kept), file), file):
        return data
    raw = _download(file, corpus)
    data = unpack(raw, file)
    if not matches_record(data, file):
        raise DownloadError(
            f"{file.url} does not contain what is recorded for the corpus {corpus} (expected sha256 "
            f"{file.sha256[:12]}… of its text): it has changed or was truncated; try again, or put {file.path} into a "
            "folder named by QKV_DATA"
        )
    save(kept, raw)
    return data


def save(path: Path, raw: bytes) -> None:
    """Write a file atomically. Raises StorageError if there is no room."""
    try:
        with atomic_write(path) as part:
            part.write_bytes(raw)
    except StorageError as error:
        raise StorageError(f"{error} QKV_CACHE names another folder for downloads.") from error


def _download(file: CorpusFile, corpus: str) -> bytes:
    request = urllib.request.Request(file.url, headers={"User-Agent": "qkv"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            raw: bytes = answer.read(4 * file.size + 2**20)  # the packed size is smaller, so this is a bound
            return raw
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise DownloadError(
            f"cannot download {file.url} for the corpus {corpus}: {getattr(error, 'reason', None) or error}; connect "
            f"to the network, or put {file.path} into a folder that the environment variable QKV_DATA names"
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error


def unpack(raw: bytes, file: CorpusFile) -> bytes:
    """Unpack gzip or zip, never more than one byte past the recorded size; return no bytes for damaged data."""
    try:
        if raw[:2] == b"\x1f\x8b":
            return gzip.GzipFile(fileobj=io.BytesIO(raw)).read(file.size + 1)
        if file.member and raw[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open(file.member) as member:
                return member.read(file.size + 1)
    except (OSError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return b""
    return raw


def matches_record(data: bytes, file: CorpusFile) -> bool:
    """Return whether this is what the table records for a file."""
    return len(data) == file.size and hashlib.sha256(data).hexdigest() == file.sha256
