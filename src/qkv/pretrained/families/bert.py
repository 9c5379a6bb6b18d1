"""Encoders like BERT: learned positions, a norm after each residual, and many kinds of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.conversions import Conversion, accept_legacy_name, ignore, skip_rows
from qkv.pretrained.families.common import parse_activation, require
from qkv.pretrained.family import Family, HFConfig, WeightTable
from qkv.pretrained.sidecar import read_sentence_pooling, read_separator


@dataclass(frozen=True)
class HeadDefinition:
    """The head of a class of models, and the names of its tensors in the family's files."""

    build_head: Callable[[HFConfig], spec.Head]
    table: WeightTable = field(default_factory=dict)


HeadDefinitions = Mapping[str, HeadDefinition]
"""Maps what follows the family's name in a class of `architectures` to its head."""

NO_HEAD = HeadDefinition(lambda config: spec.States())


def select_head(config: HFConfig, heads: HeadDefinitions) -> HeadDefinition:
    """Return the head of the class that a configuration names, the bare one if it names none, or raise CheckpointError.

    In a folder of sentence-transformers the model is bare, whatever its class.
    """
    names = config.get("architectures") or ["Model"]
    if "sentence_vector" in config:
        return HeadDefinition(lambda config: spec.Vector(**config["sentence_vector"]))
    for end in sorted(heads, key=len, reverse=True):
        if str(names[0]).endswith(end):
            return heads[end]
    raise CheckpointError(f"config.json says architectures={names!r}; expected one that ends in {', '.join(heads)}")


def combine_tables(config: HFConfig, heads: HeadDefinitions, body: WeightTable) -> WeightTable:
    """Combine the tables of the chosen head and the body, and ignore the tensors of the other heads."""
    own = select_head(config, heads).table
    others = {name: ignore() for head in heads.values() for name in head.table if name not in own}
    return {**own, **body, **others}


def count_labels(config: HFConfig) -> int:
    """Return the number of labels or classes of a head, by default 2, as in transformers."""
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


def define_label_head(name: str) -> HeadDefinition:
    """Define a head that scores labels for each position directly from the hidden states."""
    return HeadDefinition(lambda config: spec.Labels(count_labels(config)), {name: "head.linear"})


# Shared by all of them


def _norm_eps(config: HFConfig) -> float:
    return float(config.get("layer_norm_eps", 1e-12))


def _build_encoder(
    config: HFConfig,
    heads: HeadDefinitions,
    *,
    segments: spec.Segments | None = None,
    width: int | None = None,
    positions: int | None = None,
    blocks: int | None = None,
    repeats: int = 1,
) -> spec.Transformer:
    """Build an encoder. positions, blocks: override max_position_embeddings and num_hidden_layers."""
    for name, value in (("is_decoder", False), ("add_cross_attention", False), ("position_embedding_type", "absolute")):
        require(config, name, value)
    require(config, "pruned_heads", {})
    d_model, norm = config["hidden_size"], spec.Norm(eps=_norm_eps(config))
    block = spec.Block(
        spec.Attention(config["num_attention_heads"], d_model // config["num_attention_heads"]),
        spec.FeedForward(config["intermediate_size"], parse_activation(config.get("hidden_act", "gelu"))),
        norm=norm,
        norm_at="post",
    )
    encoder = spec.Stack(
        d_model,
        (block,) * (blocks or config["num_hidden_layers"]),
        spec.Tokens(config["vocab_size"], width=width, segments=segments),
        spec.Learned(positions or config["max_position_embeddings"]),
        embed_norm=norm,
        repeats=repeats,
    )
    return spec.Transformer(encoder, None, select_head(config, heads).build_head(config))


def _build_segments(config: HFConfig) -> spec.Segments:
    return spec.Segments(config.get("type_vocab_size", 2), config["sep_token_id"])


def _build_masked_lm_head(config: HFConfig, hidden_act: str | None = None) -> spec.Vocabulary:
    dense = spec.Dense(
        parse_activation(hidden_act or config.get("hidden_act", "gelu")), spec.Norm(eps=_norm_eps(config))
    )
    return spec.Vocabulary(config.get("tie_word_embeddings", True), bias=True, dense=dense)


def _make_first_token_classifier(
    hidden_act: spec.Activation, num_classes: int | None = None
) -> Callable[[HFConfig], spec.Classes]:
    """Build a head that classifies the first position's vector after a dense layer."""
    return lambda config: spec.Classes(num_classes or count_labels(config), "first", spec.Dense(hidden_act))


_BLOCK = "encoder.blocks.{n}."
_ATTENTION, _FEED_FORWARD = f"{_BLOCK}self_attention", f"{_BLOCK}feed_forward"
_EMBEDDING_TABLE: dict[str, str | Conversion] = {
    "embeddings.word_embeddings": "encoder.embedding.tokens",
    "embeddings.position_embeddings": "encoder.embedding.positions",
    "embeddings.token_type_embeddings": "encoder.embedding.segments",
    "embeddings.LayerNorm": "encoder.embedding.norm",
    "embeddings.position_ids": ignore(),
    "embeddings.token_type_ids": ignore(),
}
_LAYER_TABLE: dict[str, str | Conversion] = {
    "encoder.layer.{n}.attention.self.query": f"{_ATTENTION}.query",
    "encoder.layer.{n}.attention.self.key": f"{_ATTENTION}.key",
    "encoder.layer.{n}.attention.self.value": f"{_ATTENTION}.value",
    "encoder.layer.{n}.attention.output.dense": f"{_ATTENTION}.output",
    "encoder.layer.{n}.attention.output.LayerNorm": f"{_BLOCK}self_attention_residual.last",
    "encoder.layer.{n}.intermediate.dense": f"{_FEED_FORWARD}.up_proj",
    "encoder.layer.{n}.output.dense": f"{_FEED_FORWARD}.down_proj",
    "encoder.layer.{n}.output.LayerNorm": f"{_BLOCK}feed_forward_residual.last",
}
_BODY_TABLE: dict[str, str | Conversion] = {**_EMBEDDING_TABLE, **_LAYER_TABLE, "pooler": ignore()}


def _build_masked_lm_table(dense: str, norm: str, bias: tuple[str, ...], vectors: str) -> WeightTable:
    """Build the table of a masked-LM head. bias: the names of the bias, the first of which is written."""
    return {
        dense: "head.dense.linear",
        norm: "head.dense.norm",
        vectors: "head.weight",
        bias[0]: "head.bias",
        **{name: accept_legacy_name("head.bias") for name in bias[1:]},
    }


# BERT (Devlin et al. 2019), MiniLM (Wang et al. 2020)


def _add_gamma_and_beta(table: WeightTable) -> WeightTable:
    """Extend a table to files that call a norm's weight gamma and its bias beta."""
    norms = [(name, target) for name, target in table.items() if name.endswith("LayerNorm") and isinstance(target, str)]
    gammas = {f"{name}.gamma": accept_legacy_name(f"{target}.weight") for name, target in norms}
    betas = {f"{name}.beta": accept_legacy_name(f"{target}.bias") for name, target in norms}
    return {**gammas, **betas, **table}


_POOLER_TABLE = {"bert.pooler.dense": "head.dense.linear"}
_BERT_MASKED_LM = HeadDefinition(
    _build_masked_lm_head,
    _build_masked_lm_table(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        "cls.predictions.decoder.weight",
    ),
)
_BERT_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForMaskedLM": _BERT_MASKED_LM,
    "ForPreTraining": _BERT_MASKED_LM,
    "ForNextSentencePrediction": HeadDefinition(
        _make_first_token_classifier("tanh", 2), {**_POOLER_TABLE, "cls.seq_relationship": "head.linear"}
    ),
    "ForSequenceClassification": HeadDefinition(
        _make_first_token_classifier("tanh"), {**_POOLER_TABLE, "classifier": "head.linear"}
    ),
    "ForTokenClassification": define_label_head("classifier"),
    "ForQuestionAnswering": define_label_head("qa_outputs"),
}


# RoBERTa (Liu et al. 2019), XLM-R (Conneau et al. 2020): positions count from the one after the padding index, and
# every token belongs to the first segment


def _build_roberta(config: HFConfig) -> spec.Transformer:
    segments = spec.Segments(1, config.get("eos_token_id", 2))
    positions = config["max_position_embeddings"] - _count_unused_positions(config)
    return _build_encoder(config, _ROBERTA_HEADS, segments=segments, positions=positions)


def _build_roberta_table(config: HFConfig) -> WeightTable:
    positions = skip_rows(_count_unused_positions(config), "encoder.embedding.positions")
    segments = skip_rows(0, "encoder.embedding.segments", trailing=config.get("type_vocab_size", 2) - 1)
    own = {"embeddings.position_embeddings": positions, "embeddings.token_type_embeddings": segments}
    return combine_tables(config, _ROBERTA_HEADS, _BODY_TABLE | own)


def _count_unused_positions(config: HFConfig) -> int:
    return int(config.get("pad_token_id", 1)) + 1


_ROBERTA_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForMaskedLM": HeadDefinition(
        lambda config: _build_masked_lm_head(config, "gelu"),
        _build_masked_lm_table(
            "lm_head.dense", "lm_head.layer_norm", ("lm_head.bias", "lm_head.decoder.bias"), "lm_head.decoder.weight"
        ),
    ),
    "ForSequenceClassification": HeadDefinition(
        _make_first_token_classifier("tanh"),
        {"classifier.dense": "head.dense.linear", "classifier.out_proj": "head.linear"},
    ),
    "ForTokenClassification": define_label_head("classifier"),
    "ForQuestionAnswering": define_label_head("qa_outputs"),
}


# DistilBERT (Sanh et al. 2019): no segments


def _build_distilbert(config: HFConfig) -> spec.Transformer:
    names = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
    }
    same = {ours: config[theirs] for ours, theirs in names.items()}
    return _build_encoder({**config, **same, "hidden_act": config.get("activation", "gelu")}, _DISTILBERT_HEADS)


_DISTILBERT_TABLE: WeightTable = {
    **_EMBEDDING_TABLE,
    "transformer.layer.{n}.attention.q_lin": f"{_ATTENTION}.query",
    "transformer.layer.{n}.attention.k_lin": f"{_ATTENTION}.key",
    "transformer.layer.{n}.attention.v_lin": f"{_ATTENTION}.value",
    "transformer.layer.{n}.attention.out_lin": f"{_ATTENTION}.output",
    "transformer.layer.{n}.sa_layer_norm": f"{_BLOCK}self_attention_residual.last",
    "transformer.layer.{n}.ffn.lin1": f"{_FEED_FORWARD}.up_proj",
    "transformer.layer.{n}.ffn.lin2": f"{_FEED_FORWARD}.down_proj",
    "transformer.layer.{n}.output_layer_norm": f"{_BLOCK}feed_forward_residual.last",
}
_DISTILBERT_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForMaskedLM": HeadDefinition(
        lambda config: _build_masked_lm_head(config, config.get("activation", "gelu")),
        _build_masked_lm_table(
            "vocab_transform", "vocab_layer_norm", ("vocab_projector.bias",), "vocab_projector.weight"
        ),
    ),
    "ForSequenceClassification": HeadDefinition(
        _make_first_token_classifier("relu"), {"pre_classifier": "head.dense.linear", "classifier": "head.linear"}
    ),
    "ForTokenClassification": define_label_head("classifier"),
    "ForQuestionAnswering": define_label_head("qa_outputs"),
}


# ALBERT (Lan et al. 2020): narrow embeddings, and the same parameters in each layer


def _build_albert(config: HFConfig) -> spec.Transformer:
    groups, layers = config.get("num_hidden_groups", 1), config["num_hidden_layers"]
    inner = config.get("inner_group_num", 1)
    if groups not in (1, layers) or (groups > 1 and inner > 1):
        raise CheckpointError(
            f"the configuration says num_hidden_groups={groups} with num_hidden_layers={layers} and "
            f"inner_group_num={inner}; expected 1 group, or as many as layers with an inner_group_num of 1"
        )
    return _build_encoder(
        {"hidden_act": "gelu_new", **config},
        _ALBERT_HEADS,
        width=config["embedding_size"],
        segments=_build_segments(config),
        blocks=inner if groups == 1 else layers,
        repeats=layers if groups == 1 else 1,
    )


def _build_albert_table(config: HFConfig) -> WeightTable:
    numbers = "0.albert_layers.{n}." if config.get("num_hidden_groups", 1) == 1 else "{n}.albert_layers.0."
    layers = {
        f"encoder.albert_layer_groups.{numbers}{theirs}": ours
        for theirs, ours in (
            ("attention.query", f"{_ATTENTION}.query"),
            ("attention.key", f"{_ATTENTION}.key"),
            ("attention.value", f"{_ATTENTION}.value"),
            ("attention.dense", f"{_ATTENTION}.output"),
            ("attention.LayerNorm", f"{_BLOCK}self_attention_residual.last"),
            ("ffn", f"{_FEED_FORWARD}.up_proj"),
            ("ffn_output", f"{_FEED_FORWARD}.down_proj"),
            ("full_layer_layer_norm", f"{_BLOCK}feed_forward_residual.last"),
        )
    }
    extra: WeightTable = {
        "encoder.embedding_hidden_mapping_in": "encoder.embedding.projection",
        "pooler": ignore(),
        "sop_classifier": ignore(),
    }
    return combine_tables(config, _ALBERT_HEADS, {**_EMBEDDING_TABLE, **extra, **layers})


_ALBERT_MASKED_LM = HeadDefinition(
    lambda config: _build_masked_lm_head({"hidden_act": "gelu_new", **config}),
    _build_masked_lm_table(
        "predictions.dense",
        "predictions.LayerNorm",
        ("predictions.bias", "predictions.decoder.bias"),
        "predictions.decoder.weight",
    ),
)
_ALBERT_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForMaskedLM": _ALBERT_MASKED_LM,
    "ForPreTraining": _ALBERT_MASKED_LM,
    "ForSequenceClassification": HeadDefinition(
        lambda config: spec.Classes(count_labels(config), "first", spec.Dense("tanh")),
        {"albert.pooler": "head.dense.linear", "classifier": "head.linear"},
    ),
    "ForTokenClassification": define_label_head("classifier"),
    "ForQuestionAnswering": define_label_head("qa_outputs"),
}


# ELECTRA (Clark et al. 2020): the generator fills in masked tokens, the discriminator detects replaced ones


def _build_electra(config: HFConfig) -> spec.Transformer:
    width = config["embedding_size"]
    return _build_encoder(
        config,
        _ELECTRA_HEADS,
        width=None if width == config["hidden_size"] else width,
        segments=_build_segments(config),
    )


_ELECTRA_HEADS: HeadDefinitions = {
    "Model": NO_HEAD,
    "ForPreTraining": HeadDefinition(
        lambda config: spec.Labels(1, spec.Dense(parse_activation(config.get("hidden_act", "gelu")))),
        {
            "discriminator_predictions.dense": "head.dense.linear",
            "discriminator_predictions.dense_prediction": "head.linear",
        },
    ),
    "ForMaskedLM": HeadDefinition(
        lambda config: _build_masked_lm_head(config, "gelu"),
        _build_masked_lm_table(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            ("generator_lm_head.bias",),
            "generator_lm_head.weight",
        ),
    ),
    "ForSequenceClassification": HeadDefinition(
        _make_first_token_classifier("gelu"),
        {"classifier.dense": "head.dense.linear", "classifier.out_proj": "head.linear"},
    ),
    "ForTokenClassification": define_label_head("classifier"),
    "ForQuestionAnswering": define_label_head("qa_outputs"),
}

FAMILIES = (
    Family(
        "BERT",
        ("bert",),
        lambda config: _build_encoder(config, _BERT_HEADS, segments=_build_segments(config)),
        lambda config: _add_gamma_and_beta(combine_tables(config, _BERT_HEADS, _BODY_TABLE)),
        base_model_prefix="bert.",
        sidecar_readers=(read_separator, read_sentence_pooling),
    ),
    Family(
        "RoBERTa",
        ("roberta", "xlm-roberta", "camembert"),
        _build_roberta,
        _build_roberta_table,
        base_model_prefix="roberta.",
        sidecar_readers=(read_sentence_pooling,),
    ),
    Family(
        "DistilBERT",
        ("distilbert",),
        _build_distilbert,
        lambda config: combine_tables(config, _DISTILBERT_HEADS, _DISTILBERT_TABLE),
        base_model_prefix="distilbert.",
        sidecar_readers=(read_sentence_pooling,),
    ),
    Family(
        "ALBERT",
        ("albert",),
        _build_albert,
        _build_albert_table,
        base_model_prefix="albert.",
        sidecar_readers=(read_separator, read_sentence_pooling),
    ),
    Family(
        "ELECTRA",
        ("electra",),
        _build_electra,
        lambda config: combine_tables(
            config, _ELECTRA_HEADS, {**_BODY_TABLE, "embeddings_project": "encoder.embedding.projection"}
        ),
        base_model_prefix="electra.",
        sidecar_readers=(read_separator, read_sentence_pooling),
    ),
)
