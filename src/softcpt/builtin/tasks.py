"""The tasks of the suite ``scenes``: which attribute is asked for, and how its classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

HELD_OUT_TASKS: Final = ("position", "orientation", "material")
"""Left out of captions for pre-training, so that three tasks are new to a model trained on the others."""


@dataclass(frozen=True)
class SceneTask:
    """One task of ``scenes``; its name is the attribute that the classes are values of.

    Attributes:
        description: a sentence about the task.
        template: zero-shot prompt.
        classes: value of the attribute -> readable class name.
        among: other attributes -> the values left to chance, where not all of them would do.
    """

    description: str
    template: str
    classes: Mapping[str, str]
    among: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _same(*values: str) -> dict[str, str]:
    return {value: value for value in values}


_SEEN_WELL: Final = ("sharp", "blurred", "grainy", "pixelated")

SCENE_TASKS: Final[dict[str, SceneTask]] = {
    "shape": SceneTask(
        "a recognition task for the shape of things.",
        "a picture of a {}.",
        _same("circle", "square", "triangle", "star", "heart", "cross", "crescent", "ring", "arrow", "drop"),
    ),
    "letter": SceneTask(
        "a recognition task for capital letters in several hands.",
        "a picture of the letter {}.",
        _same(*"ABEHKMOSTX"),
    ),
    "colour": SceneTask(
        "a recognition task for the colour of things.",
        "a picture of a {} thing.",
        _same("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
    ),
    "pattern": SceneTask(
        "a recognition task for the pattern on things.",
        "a picture of a {} thing.",
        _same("plain", "striped", "dotted", "checkered", "latticed", "ringed", "zigzag"),
    ),
    "size": SceneTask(
        "a task about how large things are.",
        "a picture of a {} thing.",
        _same("tiny", "small", "medium", "large"),
        {"count": ("one",)},
    ),
    "count": SceneTask(
        "a counting task.",
        "a picture of {}.",
        {
            "one": "one thing", "two": "two things", "three": "three things", "four": "four things",
            "five": "five things", "six": "six things",
        },
        {"size": ("tiny", "small"), "quality": _SEEN_WELL},
    ),
    "arrangement": SceneTask(
        "a task about how several things are arranged.",
        "a picture of things {}.",
        {
            "scattered": "scattered about", "row": "in a row", "column": "in a column",
            "diagonal": "on a diagonal", "circle": "in a circle",
        },
        {"size": ("tiny",), "quality": _SEEN_WELL},
    ),
    "position": SceneTask(
        "a task about where in the picture a thing lies.",
        "a picture of a thing {}.",
        {
            "middle": "in the middle", "top": "at the top", "bottom": "at the bottom", "side": "at the side",
            "corner": "in a corner",
        },
    ),
    "orientation": SceneTask(
        "a task about where things point.",
        "a picture of a thing pointing {}.",
        _same("up", "diagonally up", "sideways", "diagonally down", "down"),
        {"quality": _SEEN_WELL},
    ),
    "background": SceneTask(
        "a recognition task for backgrounds.",
        "a picture of a thing in front of {}.",
        {
            "plain": "a plain wall", "grass": "grass", "sand": "sand", "water": "water",
            "bricks": "a brick wall", "clouds": "a cloudy sky", "night sky": "a night sky", "tiles": "tiles",
        },
    ),
    "outline": SceneTask(
        "a task about the outline of things.",
        "a picture of a thing with {}.",
        {
            "none": "no outline", "dark": "a black outline", "bright": "a white outline",
            "dashed": "a dashed outline", "hollow": "nothing but an outline",
        },
        {"size": ("medium", "large")},
    ),
    "material": SceneTask(
        "a recognition task for the material of things.",
        "a picture of a thing made of {}.",
        _same("paper", "wood", "metal", "stone", "fur", "glass"),
    ),
    "weather": SceneTask(
        "a task about weather and light.",
        "a picture taken in {}.",
        {
            "clear": "clear weather", "rain": "the rain", "snow": "the snow", "fog": "fog",
            "sunset": "the light of the sunset",
        },
    ),
    "quality": SceneTask(
        "a task about the quality of a picture.",
        "a {} picture.",
        _same("sharp", "blurred", "grainy", "pixelated", "overexposed", "dark"),
        {"weather": ("clear",)},
    ),
}  # fmt: skip
"""In the order of the suite. Whatever a task does not ask for varies freely."""
