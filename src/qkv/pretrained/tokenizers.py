"""Tokenizers that come with published models, as the project's own `Tokenizer`.

They read and write what the library their models come from does: `transformers` where a file belongs to one of its
tokenizers, SentencePiece for a bare `.model`, llama.cpp for the vocabulary in a GGUF file.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from qkv.errors import VocabularyError
from qkv.pretrained import byte_level, sentencepiece, weights
from qkv.pretrained.sentencepiece import Piece, SentencePieceModel
from qkv.pretrained.tokenizer_settings import (
    TokenizerDefaults,
    TokenizerSettings,
    finalize_tokenizer,
    read_json,
    read_lines,
    read_text,
)
from qkv.text import Tokenizer

_SENTENCEPIECE_FILES: Final = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
    "spm.model",
)


def load(path: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """Load the tokenizer in a folder, or in one file of it, as its model uses it.

    config: the model's `config.json`, for settings that the tokenizer's own files leave open.
    Raises VocabularyError for a file that is missing, truncated or of an unknown format.
    """
    return load_pair(path, config)[0]


def load_pair(path: str | Path, config: Mapping[str, Any] | None = None) -> tuple[Tokenizer, Tokenizer]:
    """Load the tokenizers of a model's source and target, which are usually the same."""
    place = Path(path)
    if place.is_file():
        return (_load_file(place, TokenizerSettings.from_folder(place.parent, config or {})),) * 2
    says = TokenizerSettings.from_folder(place, config or {})
    if (place / "tokenizer.json").is_file():
        return (_load_json(place / "tokenizer.json", says),) * 2
    if (place / "source.spm").is_file():
        target = place / ("target_vocab.json" if says.get("separate_vocabs") else "vocab.json")
        source = _load_renumbered(place / "source.spm", place / "vocab.json", says)
        return source, _load_renumbered(place / "target.spm", target, says)
    for name in _SENTENCEPIECE_FILES:
        if (place / name).is_file() and (place / "vocab.json").is_file():
            return (_load_renumbered(place / name, place / "vocab.json", says),) * 2
        if (place / name).is_file():
            return (_load_file(place / name, says),) * 2
    for name in ("vocab.json", "vocab.txt"):
        if (place / name).is_file():
            return (_load_file(place / name, says),) * 2
    raise VocabularyError(
        f"{place} contains no tokenizer: expected tokenizer.json, source.spm and target.spm with vocab.json, one of "
        f"{', '.join(_SENTENCEPIECE_FILES)}, vocab.json with merges.txt, or vocab.txt; copy them from where the "
        f"model came from"
    )


def find_tokenizer(path: Path) -> Path:
    """Return the path of a model's tokenizer: in its folder or, for one file, that file itself or one next to it.

    Raises VocabularyError if there is not exactly one.
    """
    if path.is_dir() or path.suffix == ".gguf":
        return path
    found = [file for file in (*path.parent.glob("tokenizer.json"), *path.parent.glob("tok*.bin")) if file != path]
    if len(found) != 1:
        raise VocabularyError(
            f"{path} contains no tokenizer, and next to it are {len(found)} files tokenizer.json or tok*.bin; expected "
            "one: copy it there"
        )
    return found[0]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers builds the same tokenizer."""
    (folder / "tokenizer.json").write_text(tokenizer.to_tokenizer_json(), encoding="utf-8")
    specials = {role: getattr(tokenizer.special_tokens, role) for role in ("bos", "eos", "unk", "pad", "mask")}
    names = {role: tokenizer.vocabulary()[number] for role, number in specials.items() if number is not None}
    says = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": name for role, name in names.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(says, indent=2), encoding="utf-8")


def build_symbol_tokenizers(config: Mapping[str, Any]) -> tuple[Tokenizer, Tokenizer] | None:
    """Build the tokenizers of a model whose configuration lists its letters and phonemes; None if it does not.

    The letters of a word are single tokens, in lower case; phonemes are separated by spaces.
    Raises VocabularyError if there is no end token among them.
    """
    if not {"letters", "phonemes"} <= set(config):
        return None
    letters, phonemes = (
        {symbol: number for number, symbol in enumerate(config[key])} for key in ("letters", "phonemes")
    )
    reads = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    reads.normalizer, reads.decoder = normalizers.Lowercase(), decoders.Fuse()
    says = tokenizers.Tokenizer(models.WordLevel(vocab=phonemes, unk_token="<unk>"))
    says.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    form = TokenizerDefaults("$A eos", tokens={"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"})
    without_begin = TokenizerDefaults("$A eos", tokens={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"})
    name = "the model's own list"
    return finalize_tokenizer(reads, TokenizerSettings(name, {}, {}), without_begin), finalize_tokenizer(
        says, TokenizerSettings(name, {}, {}), form
    )


def build_gguf_tokenizer(metadata: Mapping[str, Any], name: str = "the GGUF file") -> Tokenizer:
    """Build the tokenizer whose vocabulary is in the metadata of a GGUF file (byte-level or SentencePiece BPE).

    Raises VocabularyError if it is missing, of another kind, or has an unknown pre-tokenizer.
    """
    says = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = _require_strings(says.get("tokens"), f"{name}: tokenizer.ggml.tokens")
    kinds = [int(kind) for kind in says.get("token_type", ())] or [sentencepiece.NORMAL] * len(tokens)
    kind = says.get("model")
    if len(kinds) != len(tokens):
        raise VocabularyError(f"{name} has {len(tokens)} tokens and {len(kinds)} token types; copy it again")
    if kind == "llama":
        scores = [sentencepiece.round_score(score) for score in says.get("scores", ())]
        if len(scores) != len(tokens):
            raise VocabularyError(f"{name} has {len(tokens)} tokens and {len(scores)} scores; copy it again")
        pieces = tuple(Piece(*piece) for piece in zip(tokens, scores, kinds, strict=True))
        prefix = bool(says.get("add_space_prefix", True))
        model = SentencePieceModel(
            pieces, sentencepiece.BPE, byte_fallback=True, add_dummy_prefix=prefix, remove_extra_whitespaces=False
        )
        inner = sentencepiece.build_tokenizer(model, name)
    elif kind == "gpt2":
        merges = _parse_merges(_require_strings(says.get("merges"), f"{name}: tokenizer.ggml.merges"), name, 1)
        cut = str(says.get("pre", "gpt-2"))
        inner = byte_level.build_tokenizer(
            dict(zip(tokens, itertools.count(), strict=False)), merges, name, pre_tokenizer=cut
        )
        added = (sentencepiece.USER_DEFINED, sentencepiece.CONTROL)
        inner.add_tokens(
            [
                AddedToken(text, normalized=False, special=own == sentencepiece.CONTROL)
                for text, own in zip(tokens, kinds, strict=True)
                if own in added
            ]
        )
    else:
        raise VocabularyError(f"{name} has a tokenizer of the kind {kind!r}, expected gpt2 or llama")
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{role}_token_id": int(says[f"{key}_token_id"]) for role, key in roles.items() if f"{key}_token_id" in says}
    usual = {"bos": kind == "llama" or says.get("pre") in byte_level.IGNORE_MERGES, "eos": False}
    adds = {f"add_{role}_token": bool(says.get(f"add_{role}_token", add)) for role, add in usual.items()}
    return finalize_tokenizer(inner, TokenizerSettings(name, adds, ids), TokenizerDefaults())


def _load_file(path: Path, settings: TokenizerSettings) -> Tokenizer:
    if path.suffix == ".gguf":
        return build_gguf_tokenizer(weights.read(path).metadata, str(path))
    readers: Mapping[str, Callable[[Path, TokenizerSettings], Tokenizer]] = {
        "tokenizer.json": _load_json,
        "vocab.json": _load_byte_level,
        "vocab.txt": _load_wordpiece,
        ".model": _load_sentencepiece,
        ".spm": _load_sentencepiece,
        ".bin": _load_llama2c,
    }
    reader = readers.get(path.name) or readers.get(path.suffix)
    if reader is None:
        raise VocabularyError(f"{path} is not a tokenizer: expected a file named or ending in {', '.join(readers)}")
    return reader(path, settings)


def _load_json(path: Path, settings: TokenizerSettings) -> Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(read_text(path))
    except VocabularyError:
        raise
    except Exception as error:  # the library raises a plain Exception for every error
        raise VocabularyError(f"{path} is not a complete tokenizer.json ({error}); copy it again") from error
    return finalize_tokenizer(inner, settings, None)


def _load_byte_level(path: Path, settings: TokenizerSettings) -> Tokenizer:
    merges = path.with_name("merges.txt")
    lines = read_lines(merges)
    first = 1 if lines and lines[0].startswith("#version") else 0
    pairs = _parse_merges([line for line in lines[first:] if line], str(merges), first + 1)
    prefix = bool(settings.get("add_prefix_space", False))
    inner = byte_level.build_tokenizer(_read_vocabulary(path), pairs, str(merges), add_prefix_space=prefix)
    return finalize_tokenizer(inner, settings, settings.defaults or TokenizerDefaults())


def _load_wordpiece(path: Path, settings: TokenizerSettings) -> Tokenizer:
    form = settings.defaults or TokenizerDefaults.for_class("bert")
    vocab = {token: number for number, token in enumerate(read_lines(path))}
    unk = settings.get_token("unk") or form.tokens.get("unk", "[UNK]")
    if unk not in vocab:
        raise VocabularyError(f"{path} lacks the unknown token {unk!r}; copy it again")
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents", None),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return finalize_tokenizer(inner, settings, form)


def _load_sentencepiece(path: Path, settings: TokenizerSettings) -> Tokenizer:
    model = sentencepiece.parse_model(_read_bytes(path), str(path))
    form = settings.defaults
    if form is None:
        spelt = {role: model.pieces[number].text for role, number in model.special_ids}
        form = TokenizerDefaults(single="$A eos" if "eos" in spelt else None, tokens=spelt)
        return finalize_tokenizer(sentencepiece.build_tokenizer(model, str(path)), settings, form)
    if form.extra_ids:
        model = _add_extra_ids(model, int(settings.get("extra_ids", form.extra_ids)))
    if form.has_fairseq_ids:
        known = {token for token in form.tokens.values()}
        after = [*settings.extra_tokens, *([form.tokens["mask"]] if "mask" in form.tokens else [])]
        kept = [piece for piece in model.pieces if piece.text not in known]
        head = [Piece(text, 0.0, sentencepiece.CONTROL) for text in ("<s>", "<pad>", "</s>")]
        tail = [Piece(text, 0.0, sentencepiece.CONTROL) for text in after]
        pieces = (*head, Piece("<unk>", 0.0, sentencepiece.UNKNOWN), *kept, *tail)
        model = _replace_pieces(model, pieces)
    return finalize_tokenizer(
        sentencepiece.build_tokenizer(model, str(path), _albert_normalizers(form, settings)), settings, form
    )


def _albert_normalizers(defaults: TokenizerDefaults, settings: TokenizerSettings) -> list[normalizers.Normalizer]:
    """Return the normalizers that ALBERT applies before the model's own."""
    if not defaults.normalize_quotes:
        return []
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return [*steps, normalizers.Lowercase()] if settings.get("do_lower_case", True) else steps


def _replace_pieces(model: SentencePieceModel, pieces: Sequence[Piece]) -> SentencePieceModel:
    return SentencePieceModel(
        tuple(pieces),
        model.model_type,
        byte_fallback=model.byte_fallback,
        precompiled_charsmap=model.precompiled_charsmap,
        add_dummy_prefix=model.add_dummy_prefix,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
    )


def _add_extra_ids(model: SentencePieceModel, count: int) -> SentencePieceModel:
    """Append <extra_id_N> to the pieces, in descending order [Raffel et al. 2020, section 3.1.4]."""
    texts = {piece.text for piece in model.pieces}
    names = [f"<extra_id_{number}>" for number in reversed(range(count))]
    added = [Piece(name, 0.0, sentencepiece.CONTROL) for name in names if name not in texts]
    return _replace_pieces(model, (*model.pieces, *added))


def _load_renumbered(path: Path, vocab_path: Path, settings: TokenizerSettings) -> Tokenizer:
    """Load the pieces of a SentencePiece model with the ids that `vocab.json` gives them (Marian, M2M100).

    A piece without an id is read as unknown. A token that is not a piece is written, and read only where the text has
    characters that no piece has. Such characters can become other tokens than in the library, which looks up an unknown
    run as a whole.
    """
    form = settings.defaults or TokenizerDefaults.for_class("marian")
    model = sentencepiece.parse_model(_read_bytes(path), str(path))
    vocab = _read_vocabulary(vocab_path)
    order = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in order] != list(range(len(order))):
        raise VocabularyError(f"{vocab_path} does not number its {len(order)} tokens from 0 on; copy it again")
    known = {piece.text: piece for piece in model.pieces}
    unk = settings.get_token("unk") or form.tokens["unk"]
    if unk not in vocab:
        raise VocabularyError(f"{vocab_path} lacks the unknown token {unk!r}; copy it again")
    special = set(form.tokens.values()) | {token for token in order if form.language_pattern.fullmatch(token)}

    def piece(token: str) -> Piece:
        if token == unk:
            return Piece(token, 0.0, sentencepiece.UNKNOWN)
        if token in special:
            return Piece(token, 0.0, sentencepiece.CONTROL)
        return known.get(token, Piece(token, 0.0, sentencepiece.UNUSED))

    after = [token for token in settings.extra_tokens or form.language_tokens if token not in vocab]
    named = [*map(piece, order), *(Piece(token, 0.0, sentencepiece.CONTROL) for token in after)]
    lost = [one for one in model.pieces if one.text not in vocab and one.type == sentencepiece.NORMAL]
    inner = sentencepiece.build_tokenizer(_replace_pieces(model, (*named, *lost)), str(path), strip_spaces=True)
    return finalize_tokenizer(inner, settings, form, size=len(named))


def _load_llama2c(path: Path, settings: TokenizerSettings) -> Tokenizer:
    """Load the vocabulary of llama2.c: one number, then the score, the length and the bytes of every token."""
    content = _read_bytes(path)
    special = (sentencepiece.UNKNOWN, *[sentencepiece.CONTROL] * 2, *[sentencepiece.BYTE] * 256)
    pieces: list[Piece] = []
    at = 4
    try:
        while at < len(content):
            score, length = struct.unpack_from("<fi", content, at)
            at += 8 + length
            if length <= 0 or at > len(content):
                raise ValueError(f"token {len(pieces)} has {length} bytes and {len(content)} are all")
            text = content[at - length : at].decode().replace(" ", "▁")
            if len(pieces) < len(special):  # these are written on lines of their own
                pieces.append(Piece(text.strip("\n"), score, special[len(pieces)]))
            else:
                pieces.append(Piece(text, sentencepiece.round_score(score)))
    except (ValueError, struct.error) as error:
        raise VocabularyError(f"{path} is not a complete vocabulary of llama2.c: {error}; copy it again") from error
    if [piece.text for piece in pieces[:4]] != ["<unk>", "<s>", "</s>", "<0x00>"]:
        raise VocabularyError(f"{path} is not a vocabulary of llama2.c: expected <unk>, <s>, </s> and 256 bytes first")
    model = SentencePieceModel(tuple(pieces), sentencepiece.BPE, byte_fallback=True, remove_extra_whitespaces=False)
    return finalize_tokenizer(
        sentencepiece.build_tokenizer(model, str(path)), settings, TokenizerDefaults.for_class("llama")
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"cannot read {path}: {error}; copy it from where the model came from") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    table = read_json(path)
    for token, number in table.items():
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise VocabularyError(
                f"{path}: {token!r} has the number {number!r}, expected a whole number; copy it again"
            )
    return table


def _parse_merges(lines: Iterable[str], name: str, first_line: int) -> list[tuple[str, str]]:
    pairs = [tuple(line.split(" ")) for line in lines]
    for number, pair in enumerate(pairs, first_line):
        if len(pair) != 2 or "" in pair:
            raise VocabularyError(
                f"{name}, entry {number}: {' '.join(pair)[:40]!r} is not a merge; expected two tokens and a space"
            )
    return cast("list[tuple[str, str]]", pairs)


def _require_strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or set(map(type, value)) - {str}:
        raise VocabularyError(f"{name} is {type(value).__name__}, expected a list of texts; copy the file again")
    return list(value)
