"""Settings of published tokenizers besides their vocabulary: special tokens, and the tokens added around a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, decoders, models, processors

from qkv.errors import VocabularyError
from qkv.text import SpecialTokenIds, Tokenizer

ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_NO_LANGUAGE_TOKEN: Final = re.compile(r"(?!)")

_BERT_TOKENS: Final = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_LLAMA_TOKENS: Final = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_T5_TOKENS: Final = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
_ROBERTA_TOKENS: Final = {**_LLAMA_TOKENS, "sep": "</s>", "cls": "<s>", "pad": "<pad>", "mask": "<mask>"}
_GPT2_TOKENS: Final = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
_GEMMA_TOKENS: Final = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
_ALBERT_TOKENS: Final = {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "sep": "[SEP]", "pad": "<pad>", "cls": "[CLS]"}
_M2M100_LANGUAGES: Final = tuple(
    f"__{code}__"
    for code in (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
        "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
        "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
    ).split()
)


@dataclass(frozen=True)
class TokenizerDefaults:
    """The defaults of a tokenizer class for settings that its files leave out.

    single, pair: the templates of one text ($A) and two ($B), by role ("cls $A sep", ":1" for segment 1); without them
    a
    bos before and an eos after the text, if `add_bos` or the files ask for them.
    tokens: role -> string. extra_ids: how many <extra_id_N> follow the pieces. has_fairseq_ids: whether <s>, <pad>,
    </s>
    and <unk> come before the pieces. normalize_quotes: whether a text is simplified as for ALBERT.
    language_pattern: how language tokens are written; source_language: the one in `single` unless the files differ;
    language_tokens: those after the pieces if the files list none.
    """

    single: str | None = None
    pair: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool = False
    extra_ids: int = 0
    has_fairseq_ids: bool = False
    normalize_quotes: bool = False
    language_pattern: re.Pattern[str] = _NO_LANGUAGE_TOKEN
    source_language: str | None = None
    language_tokens: tuple[str, ...] = ()

    @staticmethod
    def for_class(name: str) -> TokenizerDefaults:
        """Return the defaults of a tokenizer class, which must be in the table."""
        return _DEFAULTS[name]


_BERT_TEMPLATES: Final = ("cls $A sep", "cls $A sep $B:1 sep:1")
_DEFAULTS: Final[Mapping[str, TokenizerDefaults]] = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), TokenizerDefaults(*_BERT_TEMPLATES, _BERT_TOKENS)),
    **dict.fromkeys(("roberta", "bart"), TokenizerDefaults("cls $A sep", "cls $A sep sep $B sep", _ROBERTA_TOKENS)),
    **dict.fromkeys(("gpt2", "gptneo", "opt"), TokenizerDefaults(tokens=_GPT2_TOKENS)),
    **dict.fromkeys(("t5", "mt5"), TokenizerDefaults("$A eos", "$A eos $B eos", _T5_TOKENS, extra_ids=100)),
    **dict.fromkeys(("llama", "mistral"), TokenizerDefaults(tokens=_LLAMA_TOKENS, add_bos=True)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), TokenizerDefaults(tokens=_GEMMA_TOKENS, add_bos=True)),
    "albert": TokenizerDefaults(*_BERT_TEMPLATES, {**_ALBERT_TOKENS, "mask": "[MASK]"}, normalize_quotes=True),
    "marian": TokenizerDefaults("$A eos", "$A $B eos", _T5_TOKENS, language_pattern=re.compile(r">>.+<<")),
    "xlmroberta": TokenizerDefaults("bos $A eos", "bos $A eos eos $B eos", _ROBERTA_TOKENS, has_fairseq_ids=True),
    "mbart": TokenizerDefaults(
        "$A eos lang", "$A $B eos lang", _ROBERTA_TOKENS, has_fairseq_ids=True, source_language="en_XX"
    ),
    "mbart50": TokenizerDefaults(
        "lang $A eos", "lang $A $B eos", _ROBERTA_TOKENS, has_fairseq_ids=True, source_language="en_XX"
    ),
    "nllb": TokenizerDefaults(
        "lang $A eos", "lang $A $B eos", _ROBERTA_TOKENS, has_fairseq_ids=True, source_language="eng_Latn"
    ),
    "m2m100": TokenizerDefaults(
        "lang $A eos",
        "lang $A $B eos",
        {**_LLAMA_TOKENS, "pad": "<pad>"},
        source_language="__en__",
        language_tokens=_M2M100_LANGUAGES,
    ),
}


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings next to a vocabulary: `tokenizer_config.json` (with the older files), then the model's own."""

    name: str
    tokenizer_config: Mapping[str, Any]
    model_config: Mapping[str, Any]

    @classmethod
    def from_folder(cls, folder: Path, model_config: Mapping[str, Any]) -> TokenizerSettings:
        """Read the settings in a folder. Raises VocabularyError for a damaged file."""
        own: dict[str, Any] = {}
        if (folder / "tokenizer_config.json").is_file():
            own = read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in own:
            if (folder / "special_tokens_map.json").is_file():
                own |= read_json(folder / "special_tokens_map.json")
            if (folder / "added_tokens.json").is_file():
                own["added_tokens_decoder"] = {
                    str(number): token for token, number in read_json(folder / "added_tokens.json").items()
                }
        return cls(str(folder), own, model_config)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value from the tokenizer's own files."""
        return self.tokenizer_config.get(key, default)

    @cached_property
    def defaults(self) -> TokenizerDefaults | None:
        """The defaults of the tokenizer's declared class, or else of the model; None if neither is known."""
        for said in (
            self.tokenizer_config.get("tokenizer_class"),
            self.model_config.get("tokenizer_class"),
            self.model_config.get("model_type"),
        ):
            name = re.sub(r"Tokenizer(Fast)?$|[-_]", "", str(said)).lower()
            if name in _DEFAULTS:
                return _DEFAULTS[name]
        return None

    def get_token(self, role: str) -> str | None:
        """Return the string of the token of a role."""
        added = self.parse_added_token(self.tokenizer_config.get(f"{role}_token"))
        return None if added is None else str(added.content)

    @cached_property
    def extra_tokens(self) -> list[str]:
        """The special tokens without a role, such as languages, in order."""
        listed = (
            self.tokenizer_config.get("extra_special_tokens")
            or self.tokenizer_config.get("additional_special_tokens")
            or ()
        )
        values = listed.values() if isinstance(listed, Mapping) else listed
        return [str(one.content) for one in map(self.parse_added_token, values) if one is not None]

    def parse_added_token(self, value: Any, special: bool = True) -> AddedToken | None:
        """Parse an added token, which is a text or an object. Raises VocabularyError for anything else."""
        if value is None:
            return None
        if isinstance(value, str):
            return AddedToken(value, normalized=False, special=special)
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        if isinstance(value, Mapping) and isinstance(value.get("content"), str):
            flags_given = {flag: bool(value[flag]) for flag in flags if flag in value}
            return AddedToken(value["content"], **{"special": special, **flags_given})
        raise VocabularyError(f"{self.name} has {value!r:.60} instead of a token; copy its tokenizer files again")


def finalize_tokenizer(
    inner: tokenizers.Tokenizer,
    settings: TokenizerSettings,
    defaults: TokenizerDefaults | None,
    size: int | None = None,
) -> Tokenizer:
    """Give a tokenizer its special tokens, its template, and the cleaning of decoded text.

    defaults: None for a tokenizer that has its own template. size: ids from there on are replaced by the unknown token.
    """
    kind = defaults or settings.defaults or TokenizerDefaults()
    spelt = {
        role: settings.get_token(role)
        if f"{role}_token" in settings.tokenizer_config
        else kind.tokens.get(role, _find_common_token(inner, settings, role))
        for role in ROLES
    }
    _add_tokens(inner, settings, spelt, strict=defaults is not None)
    size = _count_ids(inner) if size is None else size
    numbers: dict[str, int | None] = {}
    for role in ROLES:
        text = spelt[role]
        number = settings.model_config.get(f"{role}_token_id") if text is None else inner.token_to_id(text)
        numbers[role] = number if type(number) is int and 0 <= number < size else None
    explicit = "add_bos_token" in settings.tokenizer_config or "add_eos_token" in settings.tokenizer_config
    if defaults is not None or inner.post_processor is None or (explicit and kind.single is None):
        inner.post_processor = _build_template(inner, settings, kind, numbers)
    if settings.get("clean_up_tokenization_spaces") and not isinstance(inner.model, models.BPE):
        _clean_up_spaces(inner)
    kept = {role: numbers[role] for role in ("pad", "bos", "eos", "unk", "mask")}
    return Tokenizer(inner, settings.name, special_tokens=SpecialTokenIds(size, **kept))


def _count_ids(inner: tokenizers.Tokenizer) -> int:
    """Return one more than the highest id, which exceeds the number of tokens if ids are skipped."""
    count = max(inner.get_vocab_size(), *inner.get_added_tokens_decoder(), 0)
    if inner.id_to_token(count - 1) is not None and inner.id_to_token(count) is None:
        return count
    return max(inner.get_vocab(with_added_tokens=True).values(), default=0) + 1  # slow if there are many


_COMMON_TOKENS: Final = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
}


def _find_common_token(inner: tokenizers.Tokenizer, settings: TokenizerSettings, role: str) -> str | None:
    """Return the usual string of a role among the special tokens, for a tokenizer without settings."""
    if settings.tokenizer_config or settings.defaults or f"{role}_token_id" in settings.model_config:
        return None
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    return next((spelling for spelling in _COMMON_TOKENS.get(role, ()) if spelling in special), None)


def _add_tokens(
    inner: tokenizers.Tokenizer, settings: TokenizerSettings, role_tokens: Mapping[str, str | None], strict: bool
) -> None:
    """Add the tokens that the files list beyond the vocabulary; strict: raise VocabularyError if a token gets another
    id.
    """
    there = {token.content for token in inner.get_added_tokens_decoder().values()}
    roles = set(role_tokens.values()) | set(settings.extra_tokens)
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, Mapping) or not all(str(number).isdecimal() for number in listed):
        raise VocabularyError(f"{settings.name}: added_tokens_decoder must map numbers to tokens; copy the file again")
    for number, value in sorted(listed.items(), key=lambda item: int(item[0])):
        token = settings.parse_added_token(value, special=value in roles if isinstance(value, str) else False)
        if token is None or token.content in there:
            continue
        inner.add_tokens([token])
        there.add(token.content)
        if strict and inner.token_to_id(token.content) != int(number):
            raise VocabularyError(
                f"{settings.name} puts the token {token.content!r} at {number}, and it came at "
                f"{inner.token_to_id(token.content)}; the vocabulary belongs to another model; copy all files again"
            )
    for role, text in role_tokens.items():
        added_token = settings.parse_added_token(settings.get(f"{role}_token"))
        if text is None or text in there or (added_token is None and inner.token_to_id(text) is None):
            continue
        inner.add_special_tokens([added_token or AddedToken(text, normalized=False, special=True)])
        there.add(text)
    rest = [text for text in settings.extra_tokens if text not in there]
    inner.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in rest])


def _build_template(
    inner: tokenizers.Tokenizer,
    settings: TokenizerSettings,
    defaults: TokenizerDefaults,
    token_ids: Mapping[str, int | None],
) -> processors.PostProcessor:
    single, pair = defaults.single or "", defaults.pair
    if not single:
        bos = token_ids["bos"] is not None and settings.get("add_bos_token", defaults.add_bos)
        eos = token_ids["eos"] is not None and settings.get("add_eos_token", False)
        single = " ".join(["bos"] * bool(bos) + ["$A"] + ["eos"] * bool(eos))
        pair = single + " " + " ".join(["bos:1"] * bool(bos) + ["$B:1"] + ["eos:1"] * bool(eos))
    known: dict[str, int] = {}
    steps = [
        [_build_template_item(inner, settings, defaults, token_ids, word, known) for word in (said or "$A $B").split()]
        for said in (single, pair)
    ]
    return processors.TemplateProcessing(single=steps[0], pair=steps[1], special_tokens=list(known.items()))


def _build_template_item(
    inner: tokenizers.Tokenizer,
    settings: TokenizerSettings,
    defaults: TokenizerDefaults,
    token_ids: Mapping[str, int | None],
    item: str,
    special_tokens: dict[str, int],
) -> str:
    role, _, segment = item.partition(":")
    if role.startswith("$"):
        return f"{role}:{segment or 0}"
    if role == "lang":
        said = str(settings.get("src_lang") or defaults.source_language)
        spellings = [text for text in (said, f"__{said}__") if inner.token_to_id(text) is not None]
        number = inner.token_to_id(spellings[0]) if spellings else None
    else:
        said, number = role, token_ids[role]
    if number is None:
        raise VocabularyError(f"{settings.name} lacks the token for {said!r}, which its model expects around a text")
    text = str(inner.id_to_token(number))
    special_tokens[text] = number
    return f"{text}:{segment or 0}"


_CLEAN_UP_REPLACEMENTS: Final = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)
"""The replacements of `clean_up_tokenization_spaces` in a decoded text, applied in order."""


def _clean_up_spaces(inner: tokenizers.Tokenizer) -> None:
    if inner.decoder is None:
        return
    steps = [decoders.Replace(found, put) for found, put in _CLEAN_UP_REPLACEMENTS]
    inner.decoder = decoders.Sequence([inner.decoder, decoders.Fuse(), *steps])


def read_text(path: Path) -> str:
    """Read a text file. Raises VocabularyError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"cannot read {path}: {error}; copy it from where the model came from") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a file, which end with a line feed only. Raises VocabularyError as `read_text` does."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises VocabularyError if it is truncated or not an object."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise VocabularyError(f"{path} is truncated or altered: {error}; copy it again") from error
    if not isinstance(value, dict):
        raise VocabularyError(f"{path} holds a {type(value).__name__}, expected a JSON object; copy it again")
    return value
