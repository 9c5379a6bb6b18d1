"""Published encoders: a tiny random model of transformers, read by us, answers the same and is written back.

What is checked of each, with every answering head: all tensors placed; what it answers, padded and not, and for two
texts in one input where the family tells them apart; the weights of each attention; the file written back loads there
with equal answers (its pooler, which the bare model and the one for pretraining do not answer with, is not kept).
Families: BERT, RoBERTa (positions from 1 and from 2), DistilBERT, ALBERT (1 group, a group of two, a group for each
layer), ELECTRA (generator, discriminator), ModernBERT (with and without biases, either form of its rotary bases), and
folders of sentence-transformers. On published weights: all-MiniLM-L6-v2 and the ALBERT of rxnmapper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from published import Case, Written, close, mask_of, tokens, writer
from qkv import lens, pretrained


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return writer(tmp_path_factory)


HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
SEPARATOR: dict[str, Any] = {"sep_token_id": 9}
DISTILLED: dict[str, Any] = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
NARROW: dict[str, Any] = {**SEPARATOR, "embedding_size": 16}


def cases(name: str, *more: str, **settings: Any) -> list[Case]:
    return [Case(name + head, f"{name}Config", name + head, settings) for head in (*HEADS, *more)]


def variant(name: str, what: str, head: str = "ForMaskedLM", **settings: Any) -> Case:
    return Case(f"{name}{head}-{what}", f"{name}Config", name + head, settings)


ENCODERS = [
    *cases("Bert", "ForPreTraining", "ForNextSentencePrediction", **SEPARATOR),
    variant("Bert", "labels", "ForTokenClassification", **SEPARATOR, num_labels=5, hidden_act="relu"),
    variant("Bert", "one-segment", **SEPARATOR, type_vocab_size=1, layer_norm_eps=1e-5),
    *cases("Roberta", pad_token_id=1, type_vocab_size=1),
    variant("Roberta", "from-1", "ForSequenceClassification", num_labels=3),
    variant("XLMRoberta", "multilingual", "ForTokenClassification", pad_token_id=1),
    *cases("DistilBert", **DISTILLED),
    variant("DistilBert", "relu", **DISTILLED, activation="relu", sinusoidal_pos_embds=True, tie_word_embeddings=False),
    *cases("Albert", "ForPreTraining", **NARROW),
    variant("Albert", "group-of-2", "Model", **NARROW, inner_group_num=2),
    variant("Albert", "3-groups", "Model", **NARROW, num_hidden_groups=3),
    *cases("Electra", "ForPreTraining", **NARROW),
    variant("Electra", "wide", "ForPreTraining", **SEPARATOR, embedding_size=32),
]
each_encoder = pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)


def answer(output: Any) -> Tensor:
    """What a model of transformers answers with, in the form of ours."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    for name in ("logits", "prediction_logits"):
        if name in output:
            found: Tensor = output[name]
            return found
    states: Tensor = output.last_hidden_state
    return states


def ours_and_theirs(
    case: Case, theirs: Any, model: Any, given: Tensor, mask: Tensor | None = None, **more: Any
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        more["attention_mask"] = mask.long()
    expected = answer(theirs(given, **more))
    if expected.ndim == 2 and expected.shape == given.shape:  # the discriminator's
        expected = expected[..., None]
    return model(source=given, source_mask=mask), expected


def segments_of(given: Tensor, separator: int) -> Tensor:
    """0 up to the first separator, 1 after it, as the reference tokenizer numbers two texts."""
    return (given.eq(separator).cumsum(1) - given.eq(separator).long()).clamp(max=1)


@each_encoder
@torch.no_grad()
def test_an_encoder_answers_the_same(case: Case, written: Written) -> None:
    theirs, folder = written(case)
    model = pretrained.read(folder).model
    given, mask = tokens(), mask_of([12, 7], 12)
    given[given == 9] = 10
    close(*ours_and_theirs(case, theirs, model, given))
    found, expected = ours_and_theirs(case, theirs, model, given, mask)
    if found.ndim == 3:
        found, expected = found[mask], expected[mask]
    close(found, expected)
    if "sep_token_id" in case.settings and case.settings.get("type_vocab_size", 2) == 2:
        given[0, 4] = given[0, -1] = given[1, 6] = 9
        segments = segments_of(given, 9)
        found, expected = ours_and_theirs(case, theirs, model, given, token_type_ids=segments)
        close(found, expected)
        assert not torch.allclose(found, ours_and_theirs(case, theirs, model, given)[1], atol=1e-3)


@each_encoder
@torch.no_grad()
def test_every_head_of_an_encoder_can_be_looked_at(case: Case, written: Written) -> None:
    theirs, folder = written(case)
    model = pretrained.read(folder).model
    given = tokens(rows=1)
    given[given == 9] = 10
    expected = theirs(given, output_attentions=True).attentions
    trace = lens.look(model, source=given[0].tolist())
    assert len(expected) == len(trace.attentions)
    for number, weights in enumerate(expected):
        attention = trace[f"encoder.{number}.self_attention"]
        close(attention.weights()[0], weights[0])


@each_encoder
@torch.no_grad()
def test_an_encoder_is_written_back(case: Case, written: Written, tmp_path: Path) -> None:
    theirs, folder = written(case)
    first = pretrained.read(folder)
    pretrained.write(first, tmp_path)
    given = tokens()
    assert torch.equal(pretrained.read(tmp_path).model(source=given), first.model(source=given))
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not report["unexpected_keys"]
    unanswered = ("pooler.", "seq_relationship.", "sop_classifier.")
    assert not [name for name in report["missing_keys"] if not any(part in name for part in unanswered)]
    torch.testing.assert_close(answer(again.eval()(given)), answer(theirs(given)), rtol=0, atol=2e-6)
