"""What a drawn picture shows: attributes, their values, which of them can be seen, and scenes by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from softcpt.builtin.chance import weighted

COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.82, 0.12, 0.12),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.96, 0.86, 0.16),
    "green": (0.14, 0.58, 0.20),
    "blue": (0.12, 0.28, 0.80),
    "purple": (0.50, 0.16, 0.66),
    "pink": (0.97, 0.58, 0.74),
    "brown": (0.43, 0.25, 0.11),
    "black": (0.07, 0.07, 0.08),
    "white": (0.96, 0.96, 0.95),
}
PLAIN_GROUNDS: Final[dict[str, tuple[float, float, float]]] = {
    name: (0.65 * red + 0.3, 0.65 * green + 0.3, 0.65 * blue + 0.3)
    for name, (red, green, blue) in COLOURS.items()
} | {"black": (0.12, 0.12, 0.13)}
"""Plain backgrounds are paler than things."""

GROUNDS: Final[dict[str, tuple[float, float, float]]] = {
    "grass": (0.26, 0.50, 0.16),
    "sand": (0.85, 0.75, 0.52),
    "water": (0.18, 0.45, 0.66),
    "bricks": (0.62, 0.32, 0.25),
    "clouds": (0.55, 0.74, 0.93),
    "night sky": (0.05, 0.06, 0.17),
    "tiles": (0.72, 0.74, 0.76),
}
"""Mean colours of the backgrounds that are not plain."""


def _evenly(*values: str) -> dict[str, float]:
    return dict.fromkeys(values, 1.0)


def _mostly(usual: str, weight: float, *others: str) -> dict[str, float]:
    return {usual: weight, **_evenly(*others)}


ATTRIBUTES: Final[dict[str, dict[str, float]]] = {
    "shape": _evenly(
        "circle", "square", "triangle", "star", "heart", "cross", "crescent", "ring", "arrow", "drop"
    ),
    # a letter in place of a shape; empty: the thing is a shape
    "letter": _mostly("", 60, *"ABEHKMOSTX"),
    "colour": _evenly(*COLOURS),
    "pattern": _mostly("plain", 9, "striped", "dotted", "checkered", "latticed", "ringed", "zigzag"),
    "size": _evenly("tiny", "small", "medium", "large"),
    "count": _mostly("one", 20, "two", "three", "four", "five", "six"),
    "arrangement": _mostly("scattered", 3, "row", "column", "diagonal", "circle"),
    "position": _mostly("middle", 6, "top", "bottom", "side", "corner"),
    "background": _mostly("plain", 10, *GROUNDS),
    "background_colour": {**_evenly(*COLOURS), "white": 6.0},
    "outline": _mostly("none", 8, "dark", "bright", "dashed", "hollow"),
    "orientation": _evenly("up", "diagonally up", "sideways", "diagonally down", "down"),
    "material": _mostly("paper", 15, "wood", "metal", "stone", "fur", "glass"),
    "weather": _mostly("clear", 16, "rain", "snow", "fog", "sunset"),
    "quality": _mostly("sharp", 20, "blurred", "grainy", "pixelated", "overexposed", "dark"),
}
"""Attribute -> its values, and how often each is drawn where an attribute is left to chance.

No class differs from another by left and right alone: training mirrors pictures.
"""

POINTED: Final = frozenset({"triangle", "arrow", "drop"})
"""Shapes that point somewhere."""

COUNTS: Final[dict[str, int]] = {word: n for n, word in enumerate(ATTRIBUTES["count"], start=1)}

RADIUS: Final[dict[str, float]] = {"tiny": 0.07, "small": 0.13, "medium": 0.21, "large": 0.34}
"""Half the height of a thing, as a share of the picture's side."""

_LEAST_CONTRAST: Final = 0.42
_LEAST_SEEN: Final = 0.2
"""Of the contrast that fog, darkness and glass leave."""
_TRIES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that can be said of a picture; each field takes a value of ``ATTRIBUTES``."""

    shape: str
    letter: str
    colour: str
    pattern: str
    size: str
    count: str
    arrangement: str
    position: str
    background: str
    background_colour: str
    outline: str
    orientation: str
    material: str
    weather: str
    quality: str


def sample_scene(
    rng: np.random.Generator,
    fixed: Mapping[str, str] | None = None,
    among: Mapping[str, Sequence[str]] | None = None,
) -> Scene:
    """A scene with some attributes given and the others left to chance.

    Things stand out from their background in every scene.

    Args:
        rng: where chance comes from.
        fixed: attribute -> its value, which can be seen in the picture (:func:`visible`).
        among: attribute -> the values that chance may take.

    Raises:
        ValueError: an unknown attribute or value, or values that cannot be seen together.

    Example:
        >>> sample_scene(np.random.default_rng(0), {"shape": "star"}, {"count": ["two", "three"]}).shape
        'star'
    """
    fixed, among = fixed or {}, among or {}
    narrowed = {**among, **{name: (value,) for name, value in fixed.items()}}
    weights = {**ATTRIBUTES, **{name: _only(name, values) for name, values in narrowed.items()}}
    for _ in range(_TRIES):
        scene = Scene(**{name: weighted(rng, values) for name, values in weights.items()})
        if _fits(scene) and visible(scene).issuperset(fixed):
            return scene
    raise ValueError(f"no scene can show all of this: {narrowed}")


def _only(name: str, values: Sequence[str]) -> dict[str, float]:
    known = ATTRIBUTES.get(name, {})
    if not values or any(value not in known for value in values):
        raise ValueError(f"{name} cannot be {list(values)}; it is one of {list(known)}")
    return {value: known[value] for value in values}


def visible(scene: Scene) -> frozenset[str]:
    """The attributes that can be told from the picture.

    What a thing is made of cannot be seen when it is tiny, nor its colour in the dark, and so on.
    """
    is_shape = scene.letter == ""
    sizeable = scene.size != "tiny"
    clear = scene.quality not in ("blurred", "pixelated")
    exposed = scene.quality not in ("overexposed", "dark")
    true_colours = exposed and scene.weather != "sunset"
    surface = is_shape and scene.size in ("medium", "large") and clear and exposed
    filled = scene.outline != "hollow"
    ground = sum(ground_colour(scene))
    against = {"dark": ground > 0.8, "bright": ground < 2.0}
    falling = scene.weather != "snow" or ground < 2.0
    starry = scene.background == "night sky" and scene.weather in ("clear", "snow")
    rules = {
        "shape": is_shape and sizeable,
        "letter": not is_shape and sizeable and clear,
        "colour": true_colours and scene.material in ("paper", "metal", "fur"),
        "pattern": surface and filled and scene.material == "paper",
        "size": True,
        "count": True,
        "arrangement": COUNTS[scene.count] >= 4,
        "position": scene.count == "one" and scene.size != "large",
        "background": exposed or scene.background == "plain",
        "background_colour": scene.background == "plain" and true_colours,
        "outline": sizeable and clear and exposed and against.get(scene.outline, True),
        "orientation": is_shape and sizeable and scene.shape in POINTED,
        "material": surface and filled and scene.pattern == "plain",
        "weather": scene.quality in ("sharp", "grainy") and falling and not starry,
        "quality": True,
    }
    return frozenset(name for name, is_visible in rules.items() if is_visible)


def _fits(scene: Scene) -> bool:
    """Whether the things have room, lie where the scene says, and stand out."""
    n = COUNTS[scene.count]
    if n > {"tiny": 6, "small": 6, "medium": 4, "large": 1}[scene.size]:
        return False
    if n >= 4 and scene.arrangement != "scattered" and scene.size != "tiny":
        return False
    if scene.material != "paper" and scene.size in ("tiny", "small"):
        return False  # a few pixels show no grain
    if scene.material == "fur" and scene.outline != "none":
        return False
    is_fine = scene.size == "tiny" or (scene.letter and scene.size == "small")
    if is_fine and (scene.pattern != "plain" or scene.outline == "dashed"):
        return False
    if scene.outline == "hollow" and (scene.shape == "ring" or scene.letter):
        return False
    return _stands_out(scene)


def _stands_out(scene: Scene) -> bool:
    """Whether things and background differ enough in colour, also through fog or in the dark."""
    thing, ground = np.array([COLOURS[scene.colour], ground_colour(scene)])
    if scene.quality == "overexposed":
        thing, ground = np.minimum(1.5 * thing + 0.15, 1), np.minimum(1.5 * ground + 0.15, 1)
    contrast = float(np.sqrt(np.sum((thing - ground) ** 2)))
    left = 0.35 if scene.quality == "dark" else 1.0
    left *= {"fog": 0.45, "sunset": 0.7}.get(scene.weather, 1.0)
    left *= 0.5 if scene.material == "glass" else 1.0
    is_thin = scene.size == "tiny" or scene.outline == "hollow"
    left *= 0.4 if is_thin and scene.quality in ("blurred", "pixelated", "grainy") else 1.0
    return contrast >= _LEAST_CONTRAST and contrast * left >= _LEAST_SEEN


def ground_colour(scene: Scene) -> tuple[float, float, float]:
    """The background's mean colour."""
    return (
        PLAIN_GROUNDS[scene.background_colour] if scene.background == "plain" else GROUNDS[scene.background]
    )


def attributes_of(scene: Scene) -> dict[str, str]:
    """Attribute -> value, in the order of the fields."""
    return asdict(scene)
