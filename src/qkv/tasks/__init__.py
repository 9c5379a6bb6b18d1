"""Tasks: what people train models for, from a recipe to a model that answers.

learned = train("pronounce-demo", ["training.minutes=1"], folder="runs/demo")
runner = load("pronounce")
[[answer, *_]] = runner.run(["colonel"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qkv.tasks.actor import Actor, ActRecipe, EpisodeData
from qkv.tasks.recipe import (
    RECIPES,
    AnyRecipe,
    Data,
    Decoder,
    From,
    HearRecipe,
    Origin,
    Recipe,
    Recurrent,
    SeeRecipe,
    Text,
    TextData,
    Transformer,
    Words,
    WriteRecipe,
)
from qkv.tasks.recipes import named_recipes, read_recipe
from qkv.tasks.seen import Vision

if TYPE_CHECKING:
    from qkv.tasks.agent import Agent, asked_of, measure
    from qkv.tasks.examples import (
        Examples,
        choices_of,
        gather,
        led,
        origin_of,
        pairs_of,
        pictures_of,
        recordings_of,
        texts_of,
    )
    from qkv.tasks.judging import Reading, Report, evaluate, evaluate_recordings, heard_by, read_texts
    from qkv.tasks.kinds import TASKS, Task
    from qkv.tasks.learning import Learned, gathered, learn, train
    from qkv.tasks.loading import SHIPPED, Numbers, Opened, found, load, load_folder
    from qkv.tasks.markup import answer_marked, without_tags
    from qkv.tasks.matching import Matcher
    from qkv.tasks.published import Predictor
    from qkv.tasks.runner import Answer, Looked, Runner, Sound, Steps, with_method
    from qkv.tasks.wishes import Wanted, Wishes

_WHERE = {
    "agent": ("Agent", "asked_of", "measure"),
    "examples": (
        "Examples",
        "choices_of",
        "gather",
        "led",
        "origin_of",
        "pairs_of",
        "pictures_of",
        "recordings_of",
        "texts_of",
    ),
    "judging": ("Reading", "Report", "evaluate", "evaluate_recordings", "heard_by", "read_texts"),
    "kinds": ("TASKS", "Task"),
    "learning": ("Learned", "gathered", "learn", "train"),
    "loading": ("SHIPPED", "Numbers", "Opened", "found", "load", "load_folder"),
    "markup": ("answer_marked", "without_tags"),
    "matching": ("Matcher",),
    "published": ("Predictor",),
    "runner": ("Answer", "Looked", "Runner", "Sound", "Steps", "with_method"),
    "wishes": ("Wanted", "Wishes"),
}
_HOME = {name: home for home, names in _WHERE.items() for name in names}

__all__ = [
    "RECIPES",
    "SHIPPED",
    "TASKS",
    "ActRecipe",
    "Actor",
    "Agent",
    "Answer",
    "AnyRecipe",
    "Data",
    "Decoder",
    "EpisodeData",
    "Examples",
    "From",
    "HearRecipe",
    "Learned",
    "Looked",
    "Matcher",
    "Numbers",
    "Opened",
    "Predictor",
    "Origin",
    "Reading",
    "Recipe",
    "Recurrent",
    "Report",
    "Runner",
    "Sound",
    "Steps",
    "SeeRecipe",
    "Task",
    "Text",
    "TextData",
    "Transformer",
    "Vision",
    "Wanted",
    "Wishes",
    "Words",
    "WriteRecipe",
    "answer_marked",
    "asked_of",
    "choices_of",
    "evaluate",
    "evaluate_recordings",
    "found",
    "gather",
    "gathered",
    "heard_by",
    "learn",
    "led",
    "load",
    "load_folder",
    "measure",
    "named_recipes",
    "origin_of",
    "pairs_of",
    "pictures_of",
    "read_recipe",
    "read_texts",
    "recordings_of",
    "texts_of",
    "train",
    "with_method",
    "without_tags",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:  # what needs torch is imported when it is first used
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
