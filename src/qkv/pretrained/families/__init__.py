"""Families of published models, described as data, with similar families in one file."""

from __future__ import annotations

from qkv.errors import CheckpointError
from qkv.pretrained.families import (
    bart,
    bert,
    decision_transformer,
    g2p,
    gpt2,
    llama,
    marian,
    modernbert,
    single_file,
    speech,
    t5,
    vision,
)
from qkv.pretrained.family import Family, HFConfig, SingleFileReader

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *gpt2.FAMILIES,
    *bert.FAMILIES,
    *modernbert.FAMILIES,
    *bart.FAMILIES,
    *t5.FAMILIES,
    *marian.FAMILIES,
    *g2p.FAMILIES,
    *vision.FAMILIES,
    *speech.FAMILIES,
    *decision_transformer.FAMILIES,
)
"""Every family that can be read."""

SINGLE_FILE_READERS: tuple[SingleFileReader, ...] = (
    *vision.SINGLE_FILE_READERS,
    *speech.SINGLE_FILE_READERS,
    *single_file.SINGLE_FILE_READERS,
    *marian.SINGLE_FILE_READERS,
    *g2p.SINGLE_FILE_READERS,
)
"""Every file format that needs no config.json next to it."""


def get_family(config: HFConfig) -> Family:
    """Return the family that a configuration names by its `model_type`, or raise CheckpointError for an unknown one."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise CheckpointError(f"config.json says model_type={kind!r}; expected one of {known}")
