"""Tokenizers of published models: ids, frames and texts equal those of the library the model comes from."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import VocabularyError
from qkv.pretrained import sentencepiece, tokenizers
from qkv.pretrained.sentencepiece import Piece, SentencePieceModel
from qkv.text import SpecialTokenIds, Tokenizer, train

spm = pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")
transformers = pytest.importorskip("transformers", reason="needs the package transformers")

DATA = Path(os.environ.get("QKV_DATA", ""))
REAL = bool(os.environ.get("QKV_DATA"))
needs_data = pytest.mark.skipif(not REAL, reason="needs QKV_DATA, a folder with the corpora")

HARD = [
    *["", " ", "  a  b ", "\ttab\tbed\n", "naïve café", "e\u0301 combin\u0303ado", "السلام عليكم", "你好，世界！"],
    *[
        "สวัสดีชาวโลก",
        "नमस्ते दुनिया",
        "한국어 조합",
        "emoji 🙂👩\u200d👩\u200d👧 ok",
        "ctrl\x01\x7fx",
        "Donaudampfschiff\u00adfahrt" * 9,
    ],
    *[
        "ﬁne ＡＢＣ ½ ①",
        "a\u00a0b\u3000c",
        "line\u2028sep",
        "aaaaaaa bababa",
        "Ǆ İ ß ẞ",
        "it's 12345, isn't it? ' .",
        "ab<sym>cd",
    ],
]
SOME = [
    "Ein Mann läuft im Park.",
    "dogs play in snow, don't they?",
    "Le chat dort à la maison.",
    "日本語 の 文",
    # enough for the library to make a vocabulary from without any corpus
    "Un parc, une rue et une maison: voilà tout ce que les enfants connaissent du quartier.",
    "Under the bridge, two old fishermen were quietly arguing about yesterday's weather and tomorrow's catch.",
    "Zwischen den Häusern wachsen Kirschbäume, deren Blüten jedes Frühjahr die schmale Straße bedecken.",
    "Vlak přijel pozdě večer, když už na nádraží nikdo nečekal kromě starého psa.",
    *HARD,
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@functools.cache
def draw_lines() -> list[str]:
    """A few lines in several scripts, and of the corpora where they are at hand."""
    found = list(SOME)
    names = ["wmt-tests/flores-dev.cs.gz", "wmt-tests/flores-dev.fr.gz", "django-code/all.code.gz"]
    for name in (*names, "tatoeba-deu-eng/deu.txt.gz") if REAL else ():
        with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
            found += [line.rstrip("\n") for _, line in zip(range(15), file, strict=False)]
    return found


@functools.cache
def build_sentencepiece(**options: Any) -> bytes:
    """A small SentencePiece model that its own library made."""
    out = io.BytesIO()
    wide = {"hard_vocab_limit": False} if options["model_type"] == "unigram" else {}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in draw_lines() if line.strip()] * 4),
        model_writer=out,
        vocab_size=480,
        minloglevel=2,
        **wide,
        **options,
    )
    return out.getvalue()


def build_unigram(**options: Any) -> bytes:
    return build_sentencepiece(model_type="unigram", **options)


def build_bpe(**options: Any) -> bytes:
    return build_sentencepiece(model_type="bpe", **options)


def write_folder(place: Path, says: dict[str, Any] | None = None, **files: bytes | dict[str, int]) -> Path:
    """Write files (dots as double underscores in their names) and tokenizer_config.json."""
    for name, content in files.items():
        path = place / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    if says is not None:
        (place / "tokenizer_config.json").write_text(json.dumps(says))
    return place


def assert_same(ours: Tokenizer, theirs: Any, pair: bool = True) -> None:
    """Ids, what stands around a text, segments and the text read back equal the reference's on every line."""
    for line in draw_lines():
        assert ours.encode(line) == theirs.encode(line, add_special_tokens=False), line
        said, framed = theirs(line), ours.encode_with_special_tokens(line)
        assert framed.ids == said["input_ids"], line
        assert framed.segments == said.get("token_type_ids", framed.segments)
        assert ours.decode(framed.ids) == theirs.decode(framed.ids, skip_special_tokens=True), line
    if pair:
        said, framed = theirs("Hello there.", "And you?"), ours.encode_with_special_tokens("Hello there.", "And you?")
        assert framed.ids == said["input_ids"]
        assert framed.segments == said.get("token_type_ids", framed.segments)
    assert [one.ids for one in ours.encode_batch_with_special_tokens(SOME)] == [
        ours.encode_with_special_tokens(line).ids for line in SOME
    ]
    for role in ("pad", "bos", "eos", "unk", "mask"):
        assert getattr(ours.special_tokens, role) == getattr(theirs, f"{role}_token_id"), role


SPM = {
    "unigram": lambda: build_unigram(),
    "bpe": lambda: build_bpe(character_coverage=0.99),
    "bytes": lambda: build_bpe(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False),
    "own symbols": lambda: build_unigram(user_defined_symbols="<sym>,de la,ab"),
    "own bpe symbols": lambda: build_bpe(user_defined_symbols="<sym>,ba,▁▁", add_dummy_prefix=False),
}


@pytest.mark.parametrize("kind", SPM)
def test_a_sentencepiece_model_reads_and_writes_as_its_library(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(SPM[kind]())
    ours, theirs = tokenizers.load(tmp_path / "a.model"), spm.SentencePieceProcessor(model_proto=SPM[kind]())
    for line in draw_lines():
        assert ours.encode(line) == theirs.encode(line), line
        assert ours.encode_with_special_tokens(line).ids == [*theirs.encode(line), theirs.eos_id()]
        if theirs.unk_id() not in theirs.encode(line):
            assert ours.decode(theirs.encode(line)) == theirs.decode(theirs.encode(line)), line
    assert ours.size == theirs.get_piece_size() and ours.special_tokens.pad is None


def test_t5_has_sentinels(tmp_path: Path) -> None:
    content = build_unigram(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    place = write_folder(tmp_path, {"tokenizer_class": "T5Tokenizer"}, spiece__model=content)
    ours, theirs = tokenizers.load(place), transformers.T5Tokenizer.from_pretrained(place)
    assert_same(ours, theirs)
    assert ours.size == len(theirs)
    text = "fill <extra_id_0> in <extra_id_99>."
    assert ours.encode_with_special_tokens(text).ids == theirs(text)["input_ids"]
    assert ours.token_to_id("<extra_id_0>") == ours.size - 1


def test_albert_simplifies_its_text(tmp_path: Path) -> None:
    content = build_unigram(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]")
    place = write_folder(tmp_path, {"tokenizer_class": "AlbertTokenizer"}, spiece__model=content)
    assert_same(tokenizers.load(place), transformers.AlbertTokenizer.from_pretrained(place))


def test_marian_reads_and_answers_with_two_models_and_one_table(tmp_path: Path) -> None:
    source, target = build_unigram(), build_unigram(character_coverage=0.98)
    here, there = ([piece.text for piece in sentencepiece.parse_model(one, "").pieces[3:]] for one in (source, target))
    table = {token: number for number, token in enumerate(dict.fromkeys(["</s>", "<unk>", *there[::-1], *here[:-30]]))}
    assert set(here) - set(table), "some pieces must have no number"
    place = write_folder(
        tmp_path, {}, source__spm=source, target__spm=target, vocab__json=table | {"<pad>": len(table)}
    )
    theirs = transformers.MarianTokenizer.from_pretrained(place)
    reads, answers = tokenizers.load_pair(place, {"model_type": "marian"})
    assert_same(reads, theirs)
    known = spm.SentencePieceProcessor(model_proto=target)
    for line in [line for line in draw_lines() if known.unk_id() not in known.encode(line)]:
        assert answers.encode_with_special_tokens(line).ids == theirs(text_target=line)["input_ids"], line
    assert reads.size == answers.size == len(table) + 1


def test_m2m100_puts_languages_after_its_pieces(tmp_path: Path) -> None:
    content = build_bpe()
    pieces = [piece.text for piece in sentencepiece.parse_model(content, "").pieces[3:]]
    table = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces[::-1]])}
    place = write_folder(tmp_path, {"src_lang": "fr"}, sentencepiece__bpe__model=content, vocab__json=table)
    theirs = transformers.M2M100Tokenizer.from_pretrained(place)
    theirs.save_pretrained(place)
    ours = tokenizers.load(place)
    for line in [line for line in draw_lines() if "__" not in line]:
        assert ours.encode_with_special_tokens(line).ids == theirs(line)["input_ids"], line
    theirs.src_lang = "de"
    assert ours.for_language("__de__").encode_with_special_tokens("Ein Park").ids == theirs("Ein Park")["input_ids"]
    assert ours.size == len(table) + 100 and ours.token_to_id("__zu__") == theirs.get_lang_id("zu")


def test_nllb_in_another_language(tmp_path: Path) -> None:
    languages = ["eng_Latn", "fra_Latn", "deu_Latn"]
    says = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": languages}
    theirs = transformers.NllbTokenizer.from_pretrained(
        write_folder(tmp_path, says, sentencepiece__bpe__model=build_bpe())
    )
    bare = tokenizers.load(tmp_path)
    assert bare.token_to_id("eng_Latn") == bare.token_to_id("fra_Latn") - 1 == bare.special_tokens.mask - 3  # type: ignore[operator]
    theirs.save_pretrained(tmp_path / "saved")
    ours = tokenizers.load(tmp_path / "saved")
    assert_same(ours, theirs)
    theirs.src_lang = "fra_Latn"
    french = ours.for_language("fra_Latn")
    assert french.encode_with_special_tokens("Un parc").ids == theirs("Un parc")["input_ids"]
    assert french.decode(french.encode_with_special_tokens("Un parc").ids) == "Un parc"
    with pytest.raises(VocabularyError, match="'xx_Xxxx' is not in the vocabulary"):
        ours.for_language("xx_Xxxx")
    with pytest.raises(VocabularyError, match="expected the token of one language"):
        train(SOME, kind="byte").for_language("a")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "##n", "##o", "snow", "é"]
WORDS += [".", ",", "?", "'", "it", "is", "t", "世", "界", "Man", "##ä"]


@pytest.mark.parametrize(
    "says",
    [
        {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": True},
        {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "strip_accents": False},
    ],
)
def test_word_pieces_with_case_and_accents_as_configured(says: dict[str, Any], tmp_path: Path) -> None:
    place = write_folder(tmp_path, says, vocab__txt=("\n".join(WORDS) + "\n").encode())
    ours, theirs = tokenizers.load(place), transformers.BertTokenizer.from_pretrained(place)
    assert_same(ours, theirs)
    assert ours.display_tokens(ours.encode_with_special_tokens("it [MASK] snows").ids) == [
        "[CLS]",
        "it",
        "[MASK]",
        "snow",
        "##s",
        "[SEP]",
    ]
    assert ours.special_tokens.mask == 4 and ours.special_tokens.bos is None
    with pytest.raises(VocabularyError, match="no bos token"):
        _ = ours.bos


def byte_level_files(before: tuple[str, ...] = (), published: bool = False) -> dict[str, Any]:
    """vocab.json and merges.txt of GPT-2, or of a small one made here."""
    if published:
        vocab = json.loads((DATA / "gpt2-tokenizer/vocab.json").read_bytes())
        merges = (DATA / "gpt2-tokenizer/merges.txt").read_bytes()
    else:
        made = json.loads(train(SOME, vocab=300)._inner.to_str())["model"]
        words = [word for word in made["vocab"] if len(word) < 3 or not word.startswith("<")]
        vocab = {word: number for number, word in enumerate([*words, "<|endoftext|>"])}
        merges = "\n".join(["#version: 0.2", *map(" ".join, made["merges"]), ""]).encode()
    vocab = {**{token: number for number, token in enumerate(before)}, **{k: n + len(before) for k, n in vocab.items()}}
    return {"vocab__json": vocab, "merges__txt": merges}


def test_gpt2_has_no_pad(tmp_path: Path) -> None:
    place = write_folder(tmp_path, {"tokenizer_class": "GPT2Tokenizer"}, **byte_level_files(published=REAL))
    ours = tokenizers.load(place, {"model_type": "gpt2"})
    assert_same(ours, transformers.GPT2Tokenizer.from_pretrained(place))
    assert ours.special_tokens.pad is None and ours.bos == ours.eos == ours.size - 1
    assert ours.encode("a<|endoftext|>")[-1] == ours.eos and ours.decode([ours.bos, *ours.encode("a")]) == "a"
    for line in HARD:
        ids = ours.encode(line)
        assert ours.decode(ids) == line
        assert all(line.startswith(ours.decode(ids[:end]).rstrip("\ufffd")) for end in range(len(ids)))
    if REAL:  # a vocabulary that is trained on these lines has the character whole
        assert ours.display_tokens(ours.encode(" 👩"))[0].startswith("▁<0xF0>")


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.mark.parametrize(
    "says",
    [
        {
            "tokenizer_class": "RobertaTokenizer",
            "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False, "__type": "AddedToken"},
        },
        {"tokenizer_class": "BartTokenizer", "add_prefix_space": True},
        {
            "tokenizer_class": "GPT2Tokenizer",
            "add_bos_token": True,
            **{f"{role}_token": "</s>" for role in ("bos", "eos", "unk")},
            "pad_token": "<pad>",
        },
    ],
    ids=["roberta", "bart", "opt"],
)
def test_byte_level_with_other_frames(says: dict[str, Any], tmp_path: Path) -> None:
    place = write_folder(tmp_path, says, **byte_level_files(ROBERTA))
    ours, theirs = tokenizers.load(place), transformers.AutoTokenizer.from_pretrained(place)
    assert_same(ours, theirs)
    assert ours.encode("to <mask>!") == theirs.encode("to <mask>!", add_special_tokens=False)


def test_tokenizer_json_of_another_library(tmp_path: Path) -> None:
    """Its own frame, specials from the files beside it, no cutting short; the library's own settings for batches go."""
    inner = library.Tokenizer.from_str(train(SOME, vocab=290)._inner.to_str())
    inner.enable_truncation(3)
    inner.enable_padding(length=40)
    inner.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizers.load(tmp_path)
    assert len(ours.encode("Ein Mann läuft")) > 3
    assert (ours.pad, ours.bos, ours.eos, ours.unk) == (0, 1, 2, 3)
    write_folder(tmp_path, {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "[END]"})
    ours = tokenizers.load(tmp_path)
    assert ours.encode_with_special_tokens("a", "b").ids == [1, *ours.encode("a"), 290, 1, *ours.encode("b"), 290]
    assert ours.size == 291 and ours.special_tokens == SpecialTokenIds(291, bos=1, eos=290)


@pytest.mark.parametrize("kind", ["unigram", "bytes"])
def test_a_published_tokenizer_is_kept_in_one_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(SPM[kind]())
    ours = tokenizers.load(tmp_path, {"model_type": "llama"})
    ours.save(tmp_path / "kept.json")
    again = Tokenizer.load(tmp_path / "kept.json")
    assert again == ours and again.special_tokens == ours.special_tokens
    assert again.encode_batch_with_special_tokens(SOME) == ours.encode_batch_with_special_tokens(SOME)
    assert ours.encode_with_special_tokens("a").ids[0] == ours.bos


def test_a_tokenizer_made_here_frames_with_its_end() -> None:
    made = train(SOME, kind="byte")
    assert made.encode_with_special_tokens("a").ids == [*made.encode("a"), made.eos]
    assert made.encode_batch_with_special_tokens(["a", "</s>"])[1].ids == [*made.encode("</s>"), made.eos]
    assert made.encode_with_special_tokens("a", "b") == (
        [*made.encode_with_special_tokens("a").ids, *made.encode_with_special_tokens("b").ids],
        [0] * 4,
    )


GGUF = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.eos_token_id": 0}


def load_gguf(cut: str, **more: Any) -> Tokenizer:
    made = json.loads(train(SOME, vocab=300)._inner.to_str())["model"]
    tokens = ["<|end|>", *(word for word in made["vocab"] if not word.startswith(("<s", "</s", "<p", "<u")))]
    says = {"tokens": tokens, "merges": list(map(" ".join, made["merges"])), "pre": cut}
    says["token_type"] = [3, *[1] * (len(tokens) - 1)]
    return tokenizers.build_gguf_tokenizer(
        GGUF | {f"tokenizer.ggml.{key}": value for key, value in (says | more).items()}
    )


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_gguf_byte_level_vocabulary(cut: str) -> None:
    ours = load_gguf(cut)
    for line in draw_lines():
        assert ours.decode(ours.encode(line)) == line
    assert ours.encode("a<|end|>")[-1] == ours.eos == 0
    with pytest.raises(VocabularyError, match="the pre-tokenizer 'nonsense'; expected"):
        load_gguf("nonsense")


def test_gguf_cuts_digits_as_its_name_says() -> None:
    merges = ["1 2", "12 3", "123 4"]
    tokens = {
        cut: load_gguf(cut, tokens=["1", "2", "3", "4", "12", "123", "1234"], merges=merges, token_type=[1] * 7)
        for cut in ("gpt-2", "smollm", "llama-bpe")
    }
    shown = {cut: one.display_tokens(one.encode("1234")) for cut, one in tokens.items()}
    assert shown == {"gpt-2": ["1234"], "smollm": ["1", "2", "3", "4"], "llama-bpe": ["123", "4"]}


def test_gguf_sentencepiece_vocabulary() -> None:
    pieces = sentencepiece.parse_model(SPM["bytes"](), "").pieces
    columns = zip(("tokens", "scores", "token_type"), zip(*pieces, strict=True), strict=True)
    says = {f"tokenizer.ggml.{key}": list(values) for key, values in columns}
    numbers = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    ours = tokenizers.build_gguf_tokenizer(says | numbers | {"tokenizer.ggml.model": "llama"})
    theirs = spm.SentencePieceProcessor(model_proto=SPM["bytes"]())
    for line in draw_lines():
        assert ours.encode_with_special_tokens(line).ids == [1, *theirs.encode(line)]
    with pytest.raises(VocabularyError, match="scores"):
        tokenizers.build_gguf_tokenizer(says | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]})


def encode_llama2c(pieces: tuple[Piece, ...]) -> bytes:
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *(piece.text.replace("▁", " ") for piece in pieces[3:])]
    rows = [
        struct.pack("<fi", piece.score, len(text.encode())) + text.encode()
        for piece, text in zip(pieces, texts, strict=True)
    ]
    return struct.pack("<i", 9) + b"".join(rows)


def test_vocabulary_of_llama2c(tmp_path: Path) -> None:
    (tmp_path / "tok.bin").write_bytes(encode_llama2c(sentencepiece.parse_model(SPM["bytes"](), "").pieces))
    ours, theirs = tokenizers.load(tmp_path / "tok.bin"), spm.SentencePieceProcessor(model_proto=SPM["bytes"]())
    for line in draw_lines():
        assert ours.encode_with_special_tokens(line).ids == [1, *theirs.encode(line)]
    (tmp_path / "tok.bin").write_bytes((tmp_path / "tok.bin").read_bytes()[:-1])
    with pytest.raises(VocabularyError, match="not a complete vocabulary of llama2.c"):
        tokenizers.load(tmp_path / "tok.bin")


@needs_data
def test_stories260k_reads_its_own_story() -> None:
    ours = tokenizers.load(DATA / "models-small/stories260K/tok512.bin")
    framed = ours.encode_with_special_tokens("Once upon a time, there was a little girl 日")
    assert framed.ids[:6] == [1, 403, 407, 261, 378, 432]
    assert ours.display_tokens(framed.ids)[-3:] == ["<0xE6>", "<0x97>", "<0xA5>"]
    assert ours.decode(framed.ids) == "Once upon a time, there was a little girl 日"
    assert ours.decode(framed.ids[:-1]).endswith("girl \ufffd\ufffd")


@given(cut=st.integers(0, 10_000), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3))
@settings(deadline=None, max_examples=40)
def test_a_damaged_sentencepiece_model_is_named_or_read(cut: int, flips: list[tuple[int, int]]) -> None:
    content = bytearray(build_bpe(normalization_rule_name="identity"))
    del content[cut:]
    for at, value in flips:
        if at < len(content):
            content[at] = value
    try:
        assert sentencepiece.parse_model(bytes(content), "here.model").pieces
    except VocabularyError as error:
        assert "here.model is not a complete SentencePiece model" in str(error)


BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "nothing": (dict, "contains no tokenizer"),
    "cut model": (
        lambda: {"spiece__model": build_unigram()[:-7]},
        "spiece.model is not a complete SentencePiece model",
    ),
    "long field": (lambda: {"spiece__model": b"\x0a\xff\xff\xff\xff\x0f"}, "a field of 4294967295 bytes"),
    "no model": (lambda: {"spiece__model": b"hello"}, "not a complete SentencePiece model"),
    "empty model": (lambda: {"spiece__model": b""}, "it has no pieces"),
    "numbers": (lambda: {"vocab__json": {"a": "b"}, "merges__txt": b""}, "vocab.json: 'a' has the number 'b'"),
    "list": (lambda: {"vocab__json": b"[1]", "merges__txt": b""}, "vocab.json holds a list"),
    "cut table": (lambda: {"vocab__json": b'{"a": 1', "merges__txt": b""}, "vocab.json is truncated"),
    "no merges": (lambda: {"vocab__json": {"a": 0}}, "cannot read .*merges.txt"),
    "merge": (
        lambda: {"vocab__json": {"a": 0}, "merges__txt": b"#version: 0.2\na b c\n"},
        "entry 2: 'a b c' is not a merge",
    ),
    "strange merge": (
        lambda: {"vocab__json": {"a": 0}, "merges__txt": b"a b\n"},
        "merges.txt is not a table of merges",
    ),
    "words": (lambda: {"vocab__txt": b"a\nb\n"}, "lacks the unknown token"),
    "not text": (lambda: {"vocab__txt": b"\xff\xfe"}, "cannot read .*vocab.txt"),
    "json": (lambda: {"tokenizer__json": b'{"model": {}}'}, "not a complete tokenizer.json"),
    "gap": (
        lambda: {"source__spm": build_unigram(), "target__spm": build_unigram(), "vocab__json": {"<unk>": 0, "a": 2}},
        "does not number its 2 tokens from 0",
    ),
    "config": (lambda: {"vocab__txt": b"[UNK]\n", "tokenizer_config__json": {"pad_token": 7}}, "instead of a token"),
    "added": (
        lambda: {"vocab__txt": b"[UNK]\n[CLS]\n[SEP]\n", "added_tokens__json": {"x": 9}},
        "puts the token 'x' at 9, and it came at 3",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named(kind: str, tmp_path: Path) -> None:
    make, message = BAD[kind]
    write_folder(tmp_path, None, **make())
    with pytest.raises(VocabularyError, match=message) as caught:
        tokenizers.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_what_cannot_be_read_alike_is_refused() -> None:
    with pytest.raises(VocabularyError, match="model_type is 4"):
        sentencepiece.parse_model(build_sentencepiece(model_type="char"), "c.model")
    with pytest.raises(VocabularyError, match="cannot be used"):
        sentencepiece.build_tokenizer(
            SentencePieceModel((Piece("a"),), precompiled_charsmap=b"\x04\0\0\0\xff"), "x.model"
        )
    with pytest.raises(VocabularyError, match="pad=9 names no token"):
        SpecialTokenIds(3, pad=9)
    with pytest.raises(VocabularyError, match="kind 'rwkv'"):
        tokenizers.build_gguf_tokenizer({"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]})
    with pytest.raises(VocabularyError, match="tokens is NoneType"):
        tokenizers.build_gguf_tokenizer({})


@given(line=TEXT)
@settings(deadline=None, max_examples=20)
def test_any_text_survives_a_byte_level_vocabulary(line: str) -> None:
    ours = _small()
    assert ours.decode(ours.encode(line)) == line
    assert ours.decode(ours.encode(line)[:-1]) is not None


@functools.cache
def _small() -> Tokenizer:
    return load_gguf("smollm")
