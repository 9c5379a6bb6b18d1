"""What is checked of each family of published models, from the tests, and the table of docs/reference/families.md.

PYTHONPATH=src python -m tests.checked_families    # writes the table anew
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from qkv.pretrained.families import FAMILIES, get_family
from qkv.pretrained.family import Family
from tests.lens import test_speech
from tests.parity import (
    test_decision_transformer,
    test_decoders,
    test_encoder_decoders,
    test_encoders,
    test_gru,
    test_marian,
    test_vision,
)
from tests.parity import test_speech as test_speech_parity
from tests.published import Case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "families.md"
GUIDE = PAGE.parents[1] / "how-to" / "use-published-checkpoints.md"
BEGIN, END = "<!-- families: written by tests/checked_families.py -->", "<!-- end of families -->"

COLUMNS = {
    "answers": "same answers",
    "attends": "same weights",
    "steps": "with a cache",
    "generates": "generations",
    "written": "written back",
}
REAL = "real weights"


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """What one file checks of some models: column -> the name of the test."""

    where: ModuleType
    cases: Sequence[Case]
    tests: dict[str, str]
    types: tuple[str, ...] = ()  # of models that transformers does not have


VERIFIED = (
    VerifiedCheckpoint(
        test_decoders,
        test_decoders.DECODERS,
        {
            "answers": "test_a_decoder_predicts_the_same",
            "attends": "test_a_decoder_predicts_the_same",
            "steps": "test_a_decoder_steps_and_generates_the_same",
            "generates": "test_a_decoder_steps_and_generates_the_same",
            "written": "test_a_decoder_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_encoder_decoders,
        test_encoder_decoders.CASES,
        {
            "answers": "test_it_predicts_the_same",
            "attends": "test_it_attends_the_same",
            "steps": "test_it_steps_the_same",
            "generates": "test_it_generates_the_same",
            "written": "test_it_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_encoders,
        test_encoders.ENCODERS,
        {
            "answers": "test_an_encoder_answers_the_same",
            "attends": "test_every_head_of_an_encoder_can_be_looked_at",
            "written": "test_an_encoder_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_vision,
        test_vision.CASES,
        {
            "answers": "test_an_image_is_answered_the_same",
            "attends": "test_an_image_is_answered_the_same",
            "written": "test_what_is_read_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_vision,
        test_vision.TEXTS,
        {
            "answers": "test_a_text_is_answered_the_same",
            "attends": "test_a_text_is_answered_the_same",
            "written": "test_what_is_read_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_vision,
        [test_vision.CLIP],
        {
            "answers": "test_clip_compares_the_same",
            "attends": "test_clip_compares_the_same",
            "written": "test_what_is_read_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_speech_parity,
        [test_speech_parity.WHISPER],
        {
            "answers": "test_whisper_predicts_the_same",
            "attends": "test_whisper_predicts_the_same",
            "steps": "test_whisper_steps_and_generates_the_same",
            "generates": "test_whisper_steps_and_generates_the_same",
            "written": "test_whisper_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_speech_parity,
        test_speech_parity.LISTENERS,
        {
            "answers": "test_a_listener_hears_the_same",
            "attends": "test_a_listener_hears_the_same",
            "written": "test_a_listener_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_decision_transformer,
        test_decision_transformer.AGENTS,
        {
            "answers": "test_an_agent_predicts_the_same",
            "attends": "test_an_agent_attends_the_same",
            "written": "test_an_agent_is_written_back",
        },
    ),
    VerifiedCheckpoint(
        test_marian,
        (),
        {
            "answers": "test_it_computes_what_marian_does",
            "steps": "test_it_computes_what_marian_does",
            "written": "test_it_is_written_as_a_folder",
        },
        ("marian_native",),
    ),
    VerifiedCheckpoint(
        test_gru,
        (),
        {
            "answers": "test_a_random_one_is_the_plain_formula",
            "steps": "test_a_random_one_is_the_plain_formula",
            "written": "test_it_is_written_back",
        },
        ("g2p_gru",),
    ),
)

WEIGHTS = {
    "llama": ("SmolLM2-135M (GGUF), stories260K (llama2.c)", test_decoders, "test_smollm2_knows_the_capital_of_france"),  # noqa: E501
    "gpt2": ("minGPT's sorter", test_decoders, "test_mingpt_sorts_as_its_author_recorded"),
    "bert": ("all-MiniLM-L6-v2", test_encoders, "test_minilm_has_its_published_similarities"),
    "albert": ("ALBERT of RXNMapper", test_encoders, "test_the_albert_of_rxnmapper_answers_the_same"),
    "dinov2": ("ViT-S/14 (ONNX)", test_vision, "test_a_published_backbone_in_a_graph_gives_what_onnxruntime_gives"),  # noqa: E501
    "marian_native": ("Bergamot en-pt, pt-en", test_marian, "TestTheTranslator"),
    "whisper": ("tiny.en (CTranslate2)", test_speech, "test_whisper_writes_down_a_speech_and_when_it_was_said"),
    "g2p_gru": ("g2p-en", test_gru, "test_the_published_one_is_the_plain_formula"),
}  # fmt: skip
"""`model_type` -> which published weights are tried, and the test that does."""


def find_types(checked: VerifiedCheckpoint) -> set[str]:
    """The `model_type` of all its cases."""
    return {getattr(transformers, case.config).model_type for case in checked.cases} | {*checked.types}


def group_by_column(family: Family) -> dict[str, list[VerifiedCheckpoint]]:
    """Column -> what checks it, for a family."""
    found: dict[str, list[VerifiedCheckpoint]] = {}
    for checked in VERIFIED:
        if any(get_family({"model_type": kind}) is family for kind in find_types(checked)):
            for column in checked.tests:
                found.setdefault(column, []).append(checked)
    return found


def render_table() -> str:
    """The table in Markdown: a family a row, a check a column."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    heads = ["family", "`model_type`", *COLUMNS.values(), REAL]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for family in FAMILIES:
        columns = group_by_column(family)
        marks = ["yes" if column in columns else "" for column in COLUMNS]
        real = ", ".join(WEIGHTS[kind][0] for kind in family.model_types if kind in WEIGHTS)
        types = ", ".join(f"`{kind}`" for kind in family.model_types)
        yield f"| {' | '.join([family.name, types, *marks, real])} |".replace("  ", " ")


def render_page(text: str) -> str:
    """A page with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{render_table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
