"""The families of published models, each as data: one file for those that resemble each other."""

from __future__ import annotations

from qkv.errors import CheckpointError
from qkv.pretrained.families import bart, bert, control, gpt2, gru, llama, marian, modernbert, speech, t5, vision, whole
from qkv.pretrained.family import Config, Family, WholeFile

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *gpt2.FAMILIES,
    *bert.FAMILIES,
    *modernbert.FAMILIES,
    *bart.FAMILIES,
    *t5.FAMILIES,
    *marian.FAMILIES,
    *gru.FAMILIES,
    *vision.FAMILIES,
    *speech.FAMILIES,
    *control.FAMILIES,
)
"""Every family that can be read."""

FILES: tuple[WholeFile, ...] = (*vision.FILES, *speech.FILES, *whole.FILES, *marian.FILES, *gru.FILES)
"""Every kind of file that needs no config.json beside it."""


def family_of(config: Config) -> Family:
    """The family of a configuration, by its `model_type`; CheckpointError if there is none."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.types)
    raise CheckpointError(f"config.json says model_type={kind!r}; expected one of {known}")
