"""Tasks: what models are trained for, from a recipe to a model that predicts.

trained = train("pronunciation-demo", ["training.max_minutes=1"], folder="runs/demo")
load("pronunciation").predict("knight").text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkv.lazy import export_lazily
from qkv.tasks.config import (
    DataSource,
    Decoder,
    Pretrained,
    Recurrent,
    TokenizerConfig,
    TokenizerPairConfig,
    Transformer,
)
from qkv.tasks.image_classification.config import ImageClassificationConfig, ViT
from qkv.tasks.language_modeling.config import LanguageModelingConfig, TextData
from qkv.tasks.recipes import list_recipes, read_recipe
from qkv.tasks.registry import TASKS, TRAINABLE_TASKS, RecipeConfig, Task
from qkv.tasks.reinforcement_learning.config import DecisionTransformer, DecisionTransformerConfig, TrajectoryData
from qkv.tasks.speech.config import AudioClassificationConfig, SpeechConfig
from qkv.tasks.text2text.config import Text2TextConfig, Text2TextData

if TYPE_CHECKING:
    from qkv.tasks.base import Answer, TaskModel
    from qkv.tasks.encoder_model import EncoderModel
    from qkv.tasks.evaluator import (
        EvaluationReport,
        PerplexityReport,
        evaluate,
        evaluate_perplexity,
        evaluate_recordings,
    )
    from qkv.tasks.fitting import TrainedModel, fit, load_data, train
    from qkv.tasks.image_text.model import ImageTextModel
    from qkv.tasks.loader import SHIPPED_MODELS, Dtype, find_model_path, load, load_model_folder
    from qkv.tasks.output_constraints import LineConstraints, OutputConstraints
    from qkv.tasks.reinforcement_learning.model import (
        DecisionTransformerAgent,
        evaluate_agent,
        parse_evaluation_options,
    )
    from qkv.tasks.text2text.data import (
        PairSplits,
        load_image_candidates,
        load_image_labels,
        load_pair_splits,
        load_recordings,
        load_texts,
        parse_data_source,
        prepare_pairs,
        with_prefix,
    )
    from qkv.tasks.text2text.tags import strip_tags, translate_tagged
    from qkv.tasks.text_generator import AudioInput, TextGenerator, TrajectoryInput, override_method

_EXPORTS = {
    "reinforcement_learning.model": ("DecisionTransformerAgent", "parse_evaluation_options", "evaluate_agent"),
    "text2text.data": (
        "PairSplits",
        "load_image_candidates",
        "load_pair_splits",
        "with_prefix",
        "parse_data_source",
        "prepare_pairs",
        "load_image_labels",
        "load_recordings",
        "load_texts",
    ),
    "evaluator": (
        "PerplexityReport",
        "EvaluationReport",
        "evaluate",
        "evaluate_recordings",
        "evaluate_perplexity",
    ),
    "fitting": ("TrainedModel", "load_data", "fit", "train"),
    "base": ("Answer", "TaskModel"),
    "loader": ("SHIPPED_MODELS", "Dtype", "find_model_path", "load", "load_model_folder"),
    "text2text.tags": ("translate_tagged", "strip_tags"),
    "image_text.model": ("ImageTextModel",),
    "encoder_model": ("EncoderModel",),
    "text_generator": ("TextGenerator", "AudioInput", "TrajectoryInput", "override_method"),
    "output_constraints": ("OutputConstraints", "LineConstraints"),
}
_MODULE_OF = {name: home for home, names in _EXPORTS.items() for name in names}

__all__ = [
    "SHIPPED_MODELS",
    "TASKS",
    "TRAINABLE_TASKS",
    "AudioClassificationConfig",
    "DecisionTransformerConfig",
    "DecisionTransformer",
    "DecisionTransformerAgent",
    "Answer",
    "RecipeConfig",
    "Text2TextData",
    "Decoder",
    "TrajectoryData",
    "PairSplits",
    "Pretrained",
    "SpeechConfig",
    "TrainedModel",
    "ImageTextModel",
    "Dtype",
    "TaskModel",
    "EncoderModel",
    "DataSource",
    "PerplexityReport",
    "Text2TextConfig",
    "Recurrent",
    "EvaluationReport",
    "TextGenerator",
    "AudioInput",
    "TrajectoryInput",
    "ImageClassificationConfig",
    "Task",
    "TokenizerPairConfig",
    "TextData",
    "Transformer",
    "ViT",
    "OutputConstraints",
    "LineConstraints",
    "TokenizerConfig",
    "LanguageModelingConfig",
    "translate_tagged",
    "parse_evaluation_options",
    "load_image_candidates",
    "evaluate",
    "evaluate_recordings",
    "find_model_path",
    "load_pair_splits",
    "load_data",
    "fit",
    "with_prefix",
    "load",
    "load_model_folder",
    "evaluate_agent",
    "list_recipes",
    "parse_data_source",
    "prepare_pairs",
    "load_image_labels",
    "read_recipe",
    "evaluate_perplexity",
    "load_recordings",
    "load_texts",
    "train",
    "override_method",
    "strip_tags",
]


__getattr__, __dir__ = export_lazily(__name__, {name: f"qkv.tasks.{one}" for name, one in _MODULE_OF.items()})
