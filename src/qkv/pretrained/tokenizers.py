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
from qkv.pretrained.sentencepiece import Model, Piece
from qkv.pretrained.tokenizer_forms import Form, Says, as_text, finish, read_json, read_lines
from qkv.text import Tokenizer

_MODELS: Final = ("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "tokenizer.model", "spm.model")


def read(path: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """Open the tokenizer in a folder, or in one file of it, as its model reads with it.

    config: what the model's `config.json` says, for what the tokenizer's own files leave open.
    Raises VocabularyError for a file that is missing, cut short or of a form that is not known.
    """
    return read_pair(path, config)[0]


def read_pair(path: str | Path, config: Mapping[str, Any] | None = None) -> tuple[Tokenizer, Tokenizer]:
    """Open the tokenizers a model reads and answers with: most often the same one twice."""
    place = Path(path)
    if place.is_file():
        return (_of_file(place, Says.of(place.parent, config or {})),) * 2
    says = Says.of(place, config or {})
    if (place / "tokenizer.json").is_file():
        return (_of_json(place / "tokenizer.json", says),) * 2
    if (place / "source.spm").is_file():
        target = place / ("target_vocab.json" if says.get("separate_vocabs") else "vocab.json")
        source = _renumbered(place / "source.spm", place / "vocab.json", says)
        return source, _renumbered(place / "target.spm", target, says)
    for name in _MODELS:
        if (place / name).is_file() and (place / "vocab.json").is_file():
            return (_renumbered(place / name, place / "vocab.json", says),) * 2
        if (place / name).is_file():
            return (_of_file(place / name, says),) * 2
    for name in ("vocab.json", "vocab.txt"):
        if (place / name).is_file():
            return (_of_file(place / name, says),) * 2
    raise VocabularyError(
        f"{place} holds no tokenizer: expected tokenizer.json, source.spm and target.spm with vocab.json, one of "
        f"{', '.join(_MODELS)}, vocab.json with merges.txt, or vocab.txt; copy them from where the model came from"
    )


def beside(path: Path) -> Path:
    """Where the tokenizer of a model is: in its folder; of one file, in that itself or in a file beside it.

    Raises VocabularyError if there is not one.
    """
    if path.is_dir() or path.suffix == ".gguf":
        return path
    found = [file for file in (*path.parent.glob("tokenizer.json"), *path.parent.glob("tok*.bin")) if file != path]
    if len(found) != 1:
        raise VocabularyError(
            f"{path} holds no tokenizer, and beside it are {len(found)} files tokenizer.json or tok*.bin; expected "
            "one: copy it there"
        )
    return found[0]


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers makes the same tokenizer."""
    (folder / "tokenizer.json").write_text(tokenizer.to_tokenizer_json(), encoding="utf-8")
    specials = {role: getattr(tokenizer.special_tokens, role) for role in ("bos", "eos", "unk", "pad", "mask")}
    names = {role: tokenizer.vocabulary()[number] for role, number in specials.items() if number is not None}
    says = {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{role}_token": name for role, name in names.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(says, indent=2), encoding="utf-8")


def of_symbols(config: Mapping[str, Any]) -> tuple[Tokenizer, Tokenizer] | None:
    """Make the tokenizers of a model whose configuration lists its letters and phonemes; None if it does not.

    The letters of a word are read one by one, in lower case; phonemes are written with spaces between them.
    Raises VocabularyError if no end is among them.
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
    form = Form("$A eos", tokens={"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"})
    without_begin = Form("$A eos", tokens={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"})
    name = "the model's own list"
    return finish(reads, Says(name, {}, {}), without_begin), finish(says, Says(name, {}, {}), form)


def from_gguf(metadata: Mapping[str, Any], name: str = "the GGUF file") -> Tokenizer:
    """Make the tokenizer whose vocabulary is among the key-values of a GGUF file (byte-level or SentencePiece BPE).

    Raises VocabularyError if it is not there, of another kind, or cut in a way that is not known.
    """
    says = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens = _strings(says.get("tokens"), f"{name}: tokenizer.ggml.tokens")
    kinds = [int(kind) for kind in says.get("token_type", ())] or [sentencepiece.NORMAL] * len(tokens)
    kind = says.get("model")
    if len(kinds) != len(tokens):
        raise VocabularyError(f"{name} has {len(tokens)} tokens and {len(kinds)} token types; copy it again")
    if kind == "llama":
        scores = [sentencepiece.repeatable(score) for score in says.get("scores", ())]
        if len(scores) != len(tokens):
            raise VocabularyError(f"{name} has {len(tokens)} tokens and {len(scores)} scores; copy it again")
        pieces = tuple(Piece(*piece) for piece in zip(tokens, scores, kinds, strict=True))
        prefix = bool(says.get("add_space_prefix", True))
        model = Model(pieces, sentencepiece.BPE, byte_fallback=True, dummy_prefix=prefix, trims=False)
        inner = sentencepiece.build(model, name)
    elif kind == "gpt2":
        merges = _merges(_strings(says.get("merges"), f"{name}: tokenizer.ggml.merges"), name, 1)
        cut = str(says.get("pre", "gpt-2"))
        inner = byte_level.build(dict(zip(tokens, itertools.count(), strict=False)), merges, name, cut=cut)
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
    usual = {"bos": kind == "llama" or says.get("pre") in byte_level.WHOLE_WORDS, "eos": False}
    adds = {f"add_{role}_token": bool(says.get(f"add_{role}_token", add)) for role, add in usual.items()}
    return finish(inner, Says(name, adds, ids), Form())


def _of_file(path: Path, says: Says) -> Tokenizer:
    if path.suffix == ".gguf":
        return from_gguf(weights.read(path).metadata, str(path))
    readers: Mapping[str, Callable[[Path, Says], Tokenizer]] = {
        "tokenizer.json": _of_json,
        "vocab.json": _byte_level,
        "vocab.txt": _word_pieces,
        ".model": _sentencepiece,
        ".spm": _sentencepiece,
        ".bin": _llama2c,
    }
    reader = readers.get(path.name) or readers.get(path.suffix)
    if reader is None:
        raise VocabularyError(f"{path} is no tokenizer: expected a file named or ending in {', '.join(readers)}")
    return reader(path, says)


def _of_json(path: Path, says: Says) -> Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(as_text(path))
    except VocabularyError:
        raise
    except Exception as error:  # the library raises plain Exception, whatever is wrong
        raise VocabularyError(f"{path} is not a whole tokenizer.json ({error}); copy it again") from error
    return finish(inner, says, None)


def _byte_level(path: Path, says: Says) -> Tokenizer:
    merges = path.with_name("merges.txt")
    lines = read_lines(merges)
    first = 1 if lines and lines[0].startswith("#version") else 0
    pairs = _merges([line for line in lines[first:] if line], str(merges), first + 1)
    prefix = bool(says.get("add_prefix_space", False))
    inner = byte_level.build(_vocabulary(path), pairs, str(merges), prefix_space=prefix)
    return finish(inner, says, says.form or Form())


def _word_pieces(path: Path, says: Says) -> Tokenizer:
    form = says.form or Form.named("bert")
    vocab = {token: number for number, token in enumerate(read_lines(path))}
    unk = says.token("unk") or form.tokens.get("unk", "[UNK]")
    if unk not in vocab:
        raise VocabularyError(f"{path} lacks the token for the unknown, {unk!r}; copy it again")
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(says.get("tokenize_chinese_chars", True)),
        strip_accents=says.get("strip_accents", None),
        lowercase=bool(says.get("do_lower_case", True)),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return finish(inner, says, form)


def _sentencepiece(path: Path, says: Says) -> Tokenizer:
    model = sentencepiece.parse(_content(path), str(path))
    form = says.form
    if form is None:
        spelt = {role: model.pieces[number].text for role, number in model.specials}
        form = Form(single="$A eos" if "eos" in spelt else None, tokens=spelt)
        return finish(sentencepiece.build(model, str(path)), says, form)
    if form.sentinels:
        model = _with_sentinels(model, int(says.get("extra_ids", form.sentinels)))
    if form.fairseq:
        known = {token for token in form.tokens.values()}
        after = [*says.extra_tokens, *([form.tokens["mask"]] if "mask" in form.tokens else [])]
        kept = [piece for piece in model.pieces if piece.text not in known]
        head = [Piece(text, 0.0, sentencepiece.CONTROL) for text in ("<s>", "<pad>", "</s>")]
        tail = [Piece(text, 0.0, sentencepiece.CONTROL) for text in after]
        pieces = (*head, Piece("<unk>", 0.0, sentencepiece.UNKNOWN), *kept, *tail)
        model = _with(model, pieces)
    return finish(sentencepiece.build(model, str(path), _before(form, says)), says, form)


def _before(form: Form, says: Says) -> list[normalizers.Normalizer]:
    """What ALBERT does to a text before the model's own normaliser."""
    if not form.plain_quotes:
        return []
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not says.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return [*steps, normalizers.Lowercase()] if says.get("do_lower_case", True) else steps


def _with(model: Model, pieces: Sequence[Piece]) -> Model:
    return Model(
        tuple(pieces),
        model.kind,
        byte_fallback=model.byte_fallback,
        charsmap=model.charsmap,
        dummy_prefix=model.dummy_prefix,
        trims=model.trims,
    )


def _with_sentinels(model: Model, count: int) -> Model:
    """Put <extra_id_N> at the end, the first last [Raffel et al. 2020, section 3.1.4]."""
    texts = {piece.text for piece in model.pieces}
    names = [f"<extra_id_{number}>" for number in reversed(range(count))]
    added = [Piece(name, 0.0, sentencepiece.CONTROL) for name in names if name not in texts]
    return _with(model, (*model.pieces, *added))


def _renumbered(path: Path, table: Path, says: Says) -> Tokenizer:
    """The pieces of a SentencePiece model under the numbers that `vocab.json` gives them (Marian, M2M100).

    A piece that has no number there is read as unknown. A token that is no piece is written, and read only where the
    text has characters that no piece has; such characters can come out as other tokens than in the library, which
    looks up what is unknown as one run.
    """
    form = says.form or Form.named("marian")
    model = sentencepiece.parse(_content(path), str(path))
    vocab = _vocabulary(table)
    order = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in order] != list(range(len(order))):
        raise VocabularyError(f"{table} does not number its {len(order)} tokens from 0 on; copy it again")
    known = {piece.text: piece for piece in model.pieces}
    unk = says.token("unk") or form.tokens["unk"]
    if unk not in vocab:
        raise VocabularyError(f"{table} lacks the token for the unknown, {unk!r}; copy it again")
    special = set(form.tokens.values()) | {token for token in order if form.language.fullmatch(token)}

    def piece(token: str) -> Piece:
        if token == unk:
            return Piece(token, 0.0, sentencepiece.UNKNOWN)
        if token in special:
            return Piece(token, 0.0, sentencepiece.CONTROL)
        return known.get(token, Piece(token, 0.0, sentencepiece.UNUSED))

    after = [token for token in says.extra_tokens or form.languages if token not in vocab]
    named = [*map(piece, order), *(Piece(token, 0.0, sentencepiece.CONTROL) for token in after)]
    lost = [one for one in model.pieces if one.text not in vocab and one.kind == sentencepiece.NORMAL]
    inner = sentencepiece.build(_with(model, (*named, *lost)), str(path), strips=True)
    return finish(inner, says, form, size=len(named))


def _llama2c(path: Path, says: Says) -> Tokenizer:
    """The vocabulary of llama2.c: after one number, a score, a length and the bytes of every token."""
    content = _content(path)
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
                pieces.append(Piece(text, sentencepiece.repeatable(score)))
    except (ValueError, struct.error) as error:
        raise VocabularyError(f"{path} is no whole vocabulary of llama2.c: {error}; copy it again") from error
    if [piece.text for piece in pieces[:4]] != ["<unk>", "<s>", "</s>", "<0x00>"]:
        raise VocabularyError(f"{path} is no vocabulary of llama2.c: expected <unk>, <s>, </s> and 256 bytes first")
    model = Model(tuple(pieces), sentencepiece.BPE, byte_fallback=True, trims=False)
    return finish(sentencepiece.build(model, str(path)), says, Form.named("llama"))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VocabularyError(f"cannot read {path}: {error}; copy it from where the model came from") from error


def _vocabulary(path: Path) -> dict[str, int]:
    table = read_json(path)
    for token, number in table.items():
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise VocabularyError(
                f"{path}: {token!r} has the number {number!r}, expected a whole number; copy it again"
            )
    return table


def _merges(lines: Iterable[str], name: str, first: int) -> list[tuple[str, str]]:
    pairs = [tuple(line.split(" ")) for line in lines]
    for number, pair in enumerate(pairs, first):
        if len(pair) != 2 or "" in pair:
            raise VocabularyError(
                f"{name}, entry {number}: {' '.join(pair)[:40]!r} is no merge, expected two tokens and a space between"
            )
    return cast("list[tuple[str, str]]", pairs)


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or set(map(type, value)) - {str}:
        raise VocabularyError(f"{name} is {type(value).__name__}, expected a list of texts; copy the file again")
    return list(value)
