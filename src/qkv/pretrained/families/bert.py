"""Encoders in the manner of BERT: learned positions, norms after each residual, and an answering head of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qkv import spec
from qkv.errors import CheckpointError
from qkv.pretrained.beside import sentences, separator
from qkv.pretrained.families.common import activation, only
from qkv.pretrained.family import Config, Family, Table
from qkv.pretrained.operations import Operation, ignored, older, rows_from


@dataclass(frozen=True)
class Head:
    """What a class of models answers, and where the tensors of the answer stand in its files."""

    answers: Callable[[Config], spec.Answers]
    table: Table = field(default_factory=dict)


Heads = Mapping[str, Head]
"""What follows the family's name in a class of `architectures` -> its head."""

BARE = Head(lambda config: spec.States())


def chosen(config: Config, heads: Heads) -> Head:
    """The head of the class that a configuration names, bare if none; CheckpointError for one that is not known.

    In a folder of sentence-transformers the model is bare, whatever its class.
    """
    names = config.get("architectures") or ["Model"]
    if "sentence_vector" in config:
        return Head(lambda config: spec.Vector(**config["sentence_vector"]))
    for end in sorted(heads, key=len, reverse=True):
        if str(names[0]).endswith(end):
            return heads[end]
    raise CheckpointError(f"config.json says architectures={names!r}; expected one that ends in {', '.join(heads)}")


def tables(config: Config, heads: Heads, body: Table) -> Table:
    """Where everything goes: the chosen head, the body, and the heads that were not asked for, which are left out."""
    own = chosen(config, heads).table
    others = {name: ignored() for head in heads.values() for name in head.table if name not in own}
    return {**own, **body, **others}


def count(config: Config) -> int:
    """How many labels or classes a head scores: 2 where a configuration says nothing, as in transformers."""
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


def labels(name: str) -> Head:
    """Scores for the labels of each position, straight from the hidden vectors."""
    return Head(lambda config: spec.Labels(count(config)), {name: "answer.linear"})


# What all of them share


def _eps(config: Config) -> float:
    return float(config.get("layer_norm_eps", 1e-12))


def _encoder(
    config: Config,
    heads: Heads,
    *,
    segments: spec.Segments | None = None,
    width: int | None = None,
    positions: int | None = None,
    blocks: int | None = None,
    repeats: int = 1,
) -> spec.Transformer:
    """positions, blocks: how many, where that is not what max_position_embeddings and num_hidden_layers say."""
    for name, value in (("is_decoder", False), ("add_cross_attention", False), ("position_embedding_type", "absolute")):
        only(config, name, value)
    only(config, "pruned_heads", {})
    d_model, norm = config["hidden_size"], spec.Norm(eps=_eps(config))
    block = spec.Block(
        spec.Attention(config["num_attention_heads"], d_model // config["num_attention_heads"]),
        spec.FeedForward(config["intermediate_size"], activation(config.get("hidden_act", "gelu"))),
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
    return spec.Transformer(encoder, None, chosen(config, heads).answers(config))


def _segments(config: Config) -> spec.Segments:
    return spec.Segments(config.get("type_vocab_size", 2), config["sep_token_id"])


def _masked(config: Config, by: str | None = None) -> spec.Vocabulary:
    dense = spec.Dense(activation(by or config.get("hidden_act", "gelu")), spec.Norm(eps=_eps(config)))
    return spec.Vocabulary(config.get("tie_word_embeddings", True), bias=True, dense=dense)


def _of_first(by: spec.Activation, classes: int | None = None) -> Callable[[Config], spec.Classes]:
    """Classes from the first position's vector, after a dense layer."""
    return lambda config: spec.Classes(classes or count(config), "first", spec.Dense(by))


_BLOCK = "encoder.blocks.{n}."
_ATTENTION, _FEED_FORWARD = f"{_BLOCK}self_attention", f"{_BLOCK}feed_forward"
_EMBEDDINGS: dict[str, str | Operation] = {
    "embeddings.word_embeddings": "encoder.embedding.tokens",
    "embeddings.position_embeddings": "encoder.embedding.positions",
    "embeddings.token_type_embeddings": "encoder.embedding.segments",
    "embeddings.LayerNorm": "encoder.embedding.norm",
    "embeddings.position_ids": ignored(),
    "embeddings.token_type_ids": ignored(),
}
_LAYERS: dict[str, str | Operation] = {
    "encoder.layer.{n}.attention.self.query": f"{_ATTENTION}.query",
    "encoder.layer.{n}.attention.self.key": f"{_ATTENTION}.key",
    "encoder.layer.{n}.attention.self.value": f"{_ATTENTION}.value",
    "encoder.layer.{n}.attention.output.dense": f"{_ATTENTION}.output",
    "encoder.layer.{n}.attention.output.LayerNorm": f"{_BLOCK}self_attention_residual.last",
    "encoder.layer.{n}.intermediate.dense": f"{_FEED_FORWARD}.widen",
    "encoder.layer.{n}.output.dense": f"{_FEED_FORWARD}.narrow",
    "encoder.layer.{n}.output.LayerNorm": f"{_BLOCK}feed_forward_residual.last",
}
_BODY: dict[str, str | Operation] = {**_EMBEDDINGS, **_LAYERS, "pooler": ignored()}


def _masked_table(dense: str, norm: str, bias: tuple[str, ...], vectors: str) -> Table:
    """bias: the names that it has, the first of which is written."""
    return {
        dense: "answer.dense.linear",
        norm: "answer.dense.norm",
        vectors: "answer.vectors",
        bias[0]: "answer.bias",
        **{name: older("answer.bias") for name in bias[1:]},
    }


# BERT (Devlin et al. 2019), MiniLM (Wang et al. 2020)


def _gamma_and_beta(table: Table) -> Table:
    """The same table, for files that also call a norm's weight gamma and its bias beta."""
    norms = [(name, target) for name, target in table.items() if name.endswith("LayerNorm") and isinstance(target, str)]
    gammas = {f"{name}.gamma": older(f"{target}.weight") for name, target in norms}
    betas = {f"{name}.beta": older(f"{target}.bias") for name, target in norms}
    return {**gammas, **betas, **table}


_POOLED = {"bert.pooler.dense": "answer.dense.linear"}
_BERT_MASKED = Head(
    _masked,
    _masked_table(
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        "cls.predictions.decoder.weight",
    ),
)
_BERT: Heads = {
    "Model": BARE,
    "ForMaskedLM": _BERT_MASKED,
    "ForPreTraining": _BERT_MASKED,
    "ForNextSentencePrediction": Head(_of_first("tanh", 2), {**_POOLED, "cls.seq_relationship": "answer.linear"}),
    "ForSequenceClassification": Head(_of_first("tanh"), {**_POOLED, "classifier": "answer.linear"}),
    "ForTokenClassification": labels("classifier"),
    "ForQuestionAnswering": labels("qa_outputs"),
}


# RoBERTa (Liu et al. 2019), XLM-R (Conneau et al. 2020): positions count from after the padding token's number, and
# all texts are of the first segment


def _roberta(config: Config) -> spec.Transformer:
    segments = spec.Segments(1, config.get("eos_token_id", 2))
    positions = config["max_position_embeddings"] - _unused(config)
    return _encoder(config, _ROBERTA, segments=segments, positions=positions)


def _roberta_table(config: Config) -> Table:
    positions = rows_from(_unused(config), "encoder.embedding.positions")
    segments = rows_from(0, "encoder.embedding.segments", last=config.get("type_vocab_size", 2) - 1)
    own = {"embeddings.position_embeddings": positions, "embeddings.token_type_embeddings": segments}
    return tables(config, _ROBERTA, _BODY | own)


def _unused(config: Config) -> int:
    return int(config.get("pad_token_id", 1)) + 1


_ROBERTA: Heads = {
    "Model": BARE,
    "ForMaskedLM": Head(
        lambda config: _masked(config, "gelu"),
        _masked_table(
            "lm_head.dense", "lm_head.layer_norm", ("lm_head.bias", "lm_head.decoder.bias"), "lm_head.decoder.weight"
        ),
    ),
    "ForSequenceClassification": Head(
        _of_first("tanh"), {"classifier.dense": "answer.dense.linear", "classifier.out_proj": "answer.linear"}
    ),
    "ForTokenClassification": labels("classifier"),
    "ForQuestionAnswering": labels("qa_outputs"),
}


# DistilBERT (Sanh et al. 2019): no segments


def _distilbert(config: Config) -> spec.Transformer:
    names = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
    }
    same = {ours: config[theirs] for ours, theirs in names.items()}
    return _encoder({**config, **same, "hidden_act": config.get("activation", "gelu")}, _DISTILBERT)


_DISTILBERT_BODY: Table = {
    **_EMBEDDINGS,
    "transformer.layer.{n}.attention.q_lin": f"{_ATTENTION}.query",
    "transformer.layer.{n}.attention.k_lin": f"{_ATTENTION}.key",
    "transformer.layer.{n}.attention.v_lin": f"{_ATTENTION}.value",
    "transformer.layer.{n}.attention.out_lin": f"{_ATTENTION}.output",
    "transformer.layer.{n}.sa_layer_norm": f"{_BLOCK}self_attention_residual.last",
    "transformer.layer.{n}.ffn.lin1": f"{_FEED_FORWARD}.widen",
    "transformer.layer.{n}.ffn.lin2": f"{_FEED_FORWARD}.narrow",
    "transformer.layer.{n}.output_layer_norm": f"{_BLOCK}feed_forward_residual.last",
}
_DISTILBERT: Heads = {
    "Model": BARE,
    "ForMaskedLM": Head(
        lambda config: _masked(config, config.get("activation", "gelu")),
        _masked_table("vocab_transform", "vocab_layer_norm", ("vocab_projector.bias",), "vocab_projector.weight"),
    ),
    "ForSequenceClassification": Head(
        _of_first("relu"), {"pre_classifier": "answer.dense.linear", "classifier": "answer.linear"}
    ),
    "ForTokenClassification": labels("classifier"),
    "ForQuestionAnswering": labels("qa_outputs"),
}


# ALBERT (Lan et al. 2020): narrow embeddings, and the same parameters in each layer


def _albert(config: Config) -> spec.Transformer:
    groups, layers = config.get("num_hidden_groups", 1), config["num_hidden_layers"]
    inner = config.get("inner_group_num", 1)
    if groups not in (1, layers) or (groups > 1 and inner > 1):
        raise CheckpointError(
            f"the configuration says num_hidden_groups={groups} with num_hidden_layers={layers} and "
            f"inner_group_num={inner}; expected 1 group, or as many as layers with an inner_group_num of 1"
        )
    return _encoder(
        {"hidden_act": "gelu_new", **config},
        _ALBERT,
        width=config["embedding_size"],
        segments=_segments(config),
        blocks=inner if groups == 1 else layers,
        repeats=layers if groups == 1 else 1,
    )


def _albert_table(config: Config) -> Table:
    numbers = "0.albert_layers.{n}." if config.get("num_hidden_groups", 1) == 1 else "{n}.albert_layers.0."
    layers = {
        f"encoder.albert_layer_groups.{numbers}{theirs}": ours
        for theirs, ours in (
            ("attention.query", f"{_ATTENTION}.query"),
            ("attention.key", f"{_ATTENTION}.key"),
            ("attention.value", f"{_ATTENTION}.value"),
            ("attention.dense", f"{_ATTENTION}.output"),
            ("attention.LayerNorm", f"{_BLOCK}self_attention_residual.last"),
            ("ffn", f"{_FEED_FORWARD}.widen"),
            ("ffn_output", f"{_FEED_FORWARD}.narrow"),
            ("full_layer_layer_norm", f"{_BLOCK}feed_forward_residual.last"),
        )
    }
    beside: Table = {
        "encoder.embedding_hidden_mapping_in": "encoder.embedding.projection",
        "pooler": ignored(),
        "sop_classifier": ignored(),
    }
    return tables(config, _ALBERT, {**_EMBEDDINGS, **beside, **layers})


_ALBERT_MASKED = Head(
    lambda config: _masked({"hidden_act": "gelu_new", **config}),
    _masked_table(
        "predictions.dense",
        "predictions.LayerNorm",
        ("predictions.bias", "predictions.decoder.bias"),
        "predictions.decoder.weight",
    ),
)
_ALBERT: Heads = {
    "Model": BARE,
    "ForMaskedLM": _ALBERT_MASKED,
    "ForPreTraining": _ALBERT_MASKED,
    "ForSequenceClassification": Head(
        lambda config: spec.Classes(count(config), "first", spec.Dense("tanh")),
        {"albert.pooler": "answer.dense.linear", "classifier": "answer.linear"},
    ),
    "ForTokenClassification": labels("classifier"),
    "ForQuestionAnswering": labels("qa_outputs"),
}


# ELECTRA (Clark et al. 2020): the generator fills gaps, the discriminator says of each token whether it was replaced


def _electra(config: Config) -> spec.Transformer:
    width = config["embedding_size"]
    return _encoder(
        config, _ELECTRA, width=None if width == config["hidden_size"] else width, segments=_segments(config)
    )


_ELECTRA: Heads = {
    "Model": BARE,
    "ForPreTraining": Head(
        lambda config: spec.Labels(1, spec.Dense(activation(config.get("hidden_act", "gelu")))),
        {
            "discriminator_predictions.dense": "answer.dense.linear",
            "discriminator_predictions.dense_prediction": "answer.linear",
        },
    ),
    "ForMaskedLM": Head(
        lambda config: _masked(config, "gelu"),
        _masked_table(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            ("generator_lm_head.bias",),
            "generator_lm_head.weight",
        ),
    ),
    "ForSequenceClassification": Head(
        _of_first("gelu"), {"classifier.dense": "answer.dense.linear", "classifier.out_proj": "answer.linear"}
    ),
    "ForTokenClassification": labels("classifier"),
    "ForQuestionAnswering": labels("qa_outputs"),
}

FAMILIES = (
    Family(
        "BERT",
        ("bert",),
        lambda config: _encoder(config, _BERT, segments=_segments(config)),
        lambda config: _gamma_and_beta(tables(config, _BERT, _BODY)),
        prefix="bert.",
        beside=(separator, sentences),
    ),
    Family(
        "RoBERTa",
        ("roberta", "xlm-roberta", "camembert"),
        _roberta,
        _roberta_table,
        prefix="roberta.",
        beside=(sentences,),
    ),
    Family(
        "DistilBERT",
        ("distilbert",),
        _distilbert,
        lambda config: tables(config, _DISTILBERT, _DISTILBERT_BODY),
        prefix="distilbert.",
        beside=(sentences,),
    ),
    Family("ALBERT", ("albert",), _albert, _albert_table, prefix="albert.", beside=(separator, sentences)),
    Family(
        "ELECTRA",
        ("electra",),
        _electra,
        lambda config: tables(config, _ELECTRA, {**_BODY, "embeddings_project": "encoder.embedding.projection"}),
        prefix="electra.",
        beside=(separator, sentences),
    ),
)
