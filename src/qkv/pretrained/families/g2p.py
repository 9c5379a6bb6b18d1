"""The GRU encoder-decoder of g2p_en (Park and Kim 2019): from a word's letters to its phonemes, without attention."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qkv import spec
from qkv.pretrained.family import Family, HFConfig, SingleFileReader, WeightTable
from qkv.pretrained.weights import LazyWeights

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
_UNSTRESSED = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH"
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    *sorted([*_UNSTRESSED.split(), *(vowel + stress for vowel in _VOWELS.split() for stress in "012")]),
)  # fmt: skip
"""The phonemes of the CMU dictionary with stress, and UW without."""

_CELL_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_TABLE: WeightTable = {
    "enc_emb": "encoder.embedding.tokens.weight",
    "dec_emb": "decoder.embedding.tokens.weight",
    "fc_w": "head.weight",
    "fc_b": "head.bias",
    **{
        f"{short}_{part[0]}_{part[-2:]}": f"{name}.layers.0.{part}_l0"
        for short, name in (("enc", "encoder"), ("dec", "decoder"))
        for part in _CELL_PARAMETERS
    },
}


def _build_spec(config: HFConfig) -> spec.Recurrent:
    return spec.Recurrent(
        "gru",
        config["d_model"],
        1,
        spec.Tokens(len(config["letters"])),
        spec.Tokens(len(config["phonemes"])),
        bidirectional=False,
        bridged=False,
    )


def _read_g2p(file_weights: LazyWeights) -> tuple[HFConfig, Mapping[str, Tensor]] | None:
    """Read the model from the archive in the package, which has names and shapes only."""
    if set(file_weights) != set(_TABLE):
        return None
    rules = {"decoder_start_token_id": PHONEMES.index("<s>"), "eos_token_id": PHONEMES.index("</s>")}
    says = {"letters": list(LETTERS), "phonemes": list(PHONEMES), "d_model": file_weights.shape("fc_w")[1]}
    return {"model_type": "g2p_gru", **says, **rules}, file_weights


FAMILIES = (Family("g2p GRU", ("g2p_gru",), _build_spec, lambda config: _TABLE),)
SINGLE_FILE_READERS: tuple[SingleFileReader, ...] = (_read_g2p,)
