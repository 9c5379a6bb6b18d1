"""The GRU encoder-decoder of g2p_en (Park and Kim 2019): the letters of a word in, its phonemes out, no attention."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qkv import spec
from qkv.pretrained.family import Config, Family, Table, WholeFile
from qkv.pretrained.weights import Weights

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_STRESSED = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_OTHERS = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH"
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    *sorted([*_OTHERS.split(), *(vowel + stress for vowel in _STRESSED.split() for stress in "012")]),
)  # fmt: skip
"""Those of the CMU dictionary with their stress, and UW without."""

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_TABLE: Table = {
    "enc_emb": "encoder.embedding.tokens.weight",
    "dec_emb": "decoder.embedding.tokens.weight",
    "fc_w": "answer.vectors",
    "fc_b": "answer.bias",
    **{
        f"{short}_{part[0]}_{part[-2:]}": f"{name}.layers.0.{part}_l0"
        for short, name in (("enc", "encoder"), ("dec", "decoder"))
        for part in _CELL
    },
}


def _spec(config: Config) -> spec.Recurrent:
    return spec.Recurrent(
        "gru",
        config["d_model"],
        1,
        spec.Tokens(len(config["letters"])),
        spec.Tokens(len(config["phonemes"])),
        bidirectional=False,
        bridged=False,
    )


def _said(stored: Weights) -> tuple[Config, Mapping[str, Tensor]] | None:
    """The model in the archive that the package ships, which says nothing but names and shapes."""
    if set(stored) != set(_TABLE):
        return None
    rules = {"decoder_start_token_id": PHONEMES.index("<s>"), "eos_token_id": PHONEMES.index("</s>")}
    says = {"letters": list(LETTERS), "phonemes": list(PHONEMES), "d_model": stored.shape("fc_w")[1]}
    return {"model_type": "g2p_gru", **says, **rules}, stored


FAMILIES = (Family("g2p GRU", ("g2p_gru",), _spec, lambda config: _TABLE),)
FILES: tuple[WholeFile, ...] = (_said,)
