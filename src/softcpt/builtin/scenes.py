"""``scenes``: what a drawn picture shows, asked for by one task an attribute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from PIL import Image

from softcpt.builtin.draw import draw
from softcpt.builtin.scene import sample_scene
from softcpt.builtin.suite import BuiltinSuite, BuiltinTask
from softcpt.core.seeds import stream

HELD_OUT_TASKS: Final = ("position", "orientation", "material")
"""Left out of captions for pre-training, so that three tasks are new to a model trained on the others."""


@dataclass(frozen=True)
class SceneTask(BuiltinTask):
    """A task whose name is an attribute of scenes and whose classes are its values.

    Attributes:
        among: other attributes -> the values left to chance, where not all of them would do.
    """

    among: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _same(*values: str) -> dict[str, str]:
    return {value: value for value in values}


_SEEN_WELL: Final = ("sharp", "blurred", "grainy", "pixelated")
_ROOMY: Final = {"size": ("medium", "large")}

SCENE_TASKS: Final[dict[str, SceneTask]] = {
    "shape": SceneTask(
        "a recognition task for the shape of things.",
        "a picture of a {}.",
        _same("circle", "square", "triangle", "star", "heart", "cross", "crescent", "ring", "arrow", "drop"),
        _ROOMY,
    ),
    "letter": SceneTask(
        "a recognition task for capital letters in several hands.",
        "a picture of the letter {}.",
        _same(*"ABEHKMOSTX"),
        _ROOMY,
    ),
    "colour": SceneTask(
        "a recognition task for the colour of things.",
        "a picture of a {} thing.",
        _same("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
        _ROOMY,
    ),
    "pattern": SceneTask(
        "a recognition task for the pattern on things.",
        "a picture of a {} thing.",
        _same("plain", "striped", "dotted", "checkered", "latticed", "ringed", "zigzag"),
        {"size": ("large",)},
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
        _ROOMY,
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
        _ROOMY,
    ),
    "material": SceneTask(
        "a recognition task for the material of things.",
        "a picture of a thing made of {}.",
        _same("paper", "wood", "metal", "stone", "fur", "glass"),
        {"size": ("large",)},
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


def _pictures(task: str, value: str, seed: int, n: int, size_px: int) -> Iterator[Image.Image]:
    for i in range(n):
        rng = stream("scenes", seed, task, value, i)
        yield draw(sample_scene(rng, {task: value}, SCENE_TASKS[task].among), rng, size_px)


SCENES: Final = BuiltinSuite(
    name="scenes",
    description="Drawn pictures of shapes and letters; each task asks for another of their attributes.",
    source="drawn by softcpt",
    tasks=SCENE_TASKS,
    images_per_class=60,
    most_images=None,
    pictures=_pictures,
)
