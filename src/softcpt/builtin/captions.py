"""Sentences about a scene, as varied as people's: any of its visible attributes, in many orders and words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from softcpt.builtin.chance import happens, pick, shuffled, whole
from softcpt.builtin.scene import Scene, attributes_of, visible

_NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus sign"),
    "crescent": ("crescent", "crescent moon"),
    "drop": ("drop", "teardrop"),
}
_SINGULAR: Final = ("thing", "object", "figure")
_PLURALS: Final = {"cross": "crosses"}

_ADJECTIVES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "size": {
        "tiny": ("tiny", "very small"),
        "small": ("small", "little"),
        "medium": ("medium", "medium-sized"),
        "large": ("large", "big"),
    },
    "outline": {"hollow": ("hollow", "unfilled")},
    "pattern": {
        "plain": ("plain",),
        "striped": ("striped", "stripy"),
        "dotted": ("dotted", "spotted", "polka dot"),
        "checkered": ("checkered", "chequered"),
        "latticed": ("latticed", "grid-patterned"),
        "ringed": ("ringed", "target-patterned"),
        "zigzag": ("zigzag", "zigzag-patterned"),
    },
    "colour": {},  # as they are called
    "material": {
        "paper": ("paper", "flat"),
        "wood": ("wooden", "wood"),
        "metal": ("metal", "shiny metal", "metallic"),
        "stone": ("stone", "rough stone"),
        "fur": ("furry", "fluffy"),
        "glass": ("glass", "transparent"),
    },
}
"""Words before the noun, in the order in which English has them."""

_PHRASES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "outline": {
        "none": ("without an outline",),
        "dark": ("with a black outline", "outlined in black", "with a dark border"),
        "bright": ("with a white outline", "outlined in white", "with a bright border"),
        "dashed": ("with a dashed outline", "with a broken outline"),
        "hollow": ("drawn as an outline only",),
    },
    "pattern": {
        "striped": ("with stripes",),
        "dotted": ("with dots", "with spots"),
        "checkered": ("with a checkerboard pattern",),
        "latticed": ("with a lattice of lines", "with a grid pattern"),
        "ringed": ("with rings", "with a target pattern"),
        "zigzag": ("with zigzag lines",),
    },
    "material": {
        "paper": ("cut out of paper",),
        "wood": ("made of wood",),
        "metal": ("made of metal",),
        "stone": ("made of stone",),
        "fur": ("made of fur", "covered in fur"),
        "glass": ("made of glass",),
    },
    "orientation": {
        "up": ("pointing up", "pointing upwards"),
        "diagonally up": ("pointing diagonally up",),
        "sideways": ("pointing sideways", "pointing to the side"),
        "diagonally down": ("pointing diagonally down",),
        "down": ("pointing down", "pointing downwards"),
    },
    "arrangement": {
        "scattered": ("scattered about", "spread out"),
        "row": ("in a row", "lined up"),
        "column": ("in a column", "one above the other"),
        "diagonal": ("on a diagonal", "in a diagonal line"),
        "circle": ("in a circle", "arranged in a circle"),
    },
    "position": {
        "middle": ("in the middle", "in the centre"),
        "top": ("at the top", "near the top edge"),
        "bottom": ("at the bottom", "near the bottom edge"),
        "side": ("at the side", "near the side"),
        "corner": ("in a corner", "in the corner"),
    },
    "background": {
        "plain": ("on a plain background",),
        "grass": ("on grass", "on a lawn", "on a grass background"),
        "sand": ("on sand", "on a beach", "on a sand background"),
        "water": ("on water", "in the sea", "on a water background"),
        "bricks": ("on a brick wall", "in front of bricks"),
        "clouds": ("in a cloudy sky", "in front of clouds", "in the sky"),
        "night sky": ("in a night sky", "at night", "under a starry sky"),
        "tiles": ("on tiles", "on a tiled floor"),
    },
    "weather": {
        "clear": ("in clear weather",),
        "rain": ("in the rain", "on a rainy day"),
        "snow": ("in the snow", "while it is snowing"),
        "fog": ("in fog", "on a foggy day"),
        "sunset": ("at sunset", "in the evening light"),
    },
}
"""Words behind the noun."""

_ABOUT: Final = ("picture", "photo", "image", "drawing")
_QUALITY: Final[dict[str, tuple[str, ...]]] = {
    "sharp": ("sharp", "clear"),
    "blurred": ("blurred", "blurry", "unsharp"),
    "grainy": ("grainy", "noisy"),
    "pixelated": ("pixelated", "blocky"),
    "overexposed": ("overexposed", "washed out"),
    "dark": ("dark", "underexposed"),
}
_USUAL: Final = {
    "pattern": "plain",
    "outline": "none",
    "material": "paper",
    "weather": "clear",
    "quality": "sharp",
    "background": "plain",
    "count": "one",
}
"""What people rarely mention."""


def describe(scene: Scene, rng: np.random.Generator, *, leave_out: Collection[str] = ()) -> str:
    """One of many true sentences about a scene.

    Args:
        scene: of the picture.
        rng: chooses what is mentioned, the words and their order.
        leave_out: attributes that are never mentioned, such as those of ``HELD_OUT_TASKS``.

    Example:
        >>> from softcpt.builtin.scene import sample_scene
        >>> scene = sample_scene(np.random.default_rng(0), {"shape": "star", "count": "two"})
        >>> "star" in describe(scene, np.random.default_rng(6))
        True
    """
    said = _chosen(scene, rng, leave_out)
    count = said.get("count", "some" if scene.count != "one" else "")
    noun = _noun(scene, said, rng)
    adjectives, phrases = _words(said, rng)
    style = whole(rng, 0, 9)
    if style == 0:
        return ", ".join(shuffled(rng, [f"{count} {noun}".strip(), *adjectives, *phrases]))
    if style == 1 and adjectives:
        core = _with_article(noun, count)
        return _finished(said, f"{core}, {' and '.join(adjectives)}, {', '.join(phrases)}".rstrip(", "), rng)
    core = _with_article(" ".join([*adjectives, noun]), count)
    return _finished(said, " ".join([core, *shuffled(rng, phrases)]), rng)


def _chosen(scene: Scene, rng: np.random.Generator, leave_out: Collection[str]) -> dict[str, str]:
    """The attributes to be mentioned: one to seven, rarely the usual ones."""
    seen = visible(scene) - set(leave_out)
    told = {name: value for name, value in attributes_of(scene).items() if name in seen}
    for name, usual in _USUAL.items():
        if told.get(name) == usual and not happens(rng, 0.12):
            del told[name]
    kept = shuffled(rng, list(told))[: whole(rng, 2, 6)]
    # What it is nearly always comes first to mind.
    kept += [name for name in ("shape", "letter") if name in told and name not in kept and happens(rng, 0.8)]
    if "background_colour" in kept:
        told["background"] = ""
    return {name: value for name, value in told.items() if name in kept and value}


def _noun(scene: Scene, said: dict[str, str], rng: np.random.Generator) -> str:
    if "letter" in said:
        return f"letter{'' if scene.count == 'one' else 's'} {said['letter']}"
    singular = pick(rng, _NOUNS.get(said["shape"], (said["shape"],)) if "shape" in said else _SINGULAR)
    return singular if scene.count == "one" else _PLURALS.get(singular, singular + "s")


def _words(said: dict[str, str], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Words before the noun, in English order, and phrases behind it."""
    before, behind = [], []
    for name, words in _ADJECTIVES.items():
        if (value := said.get(name)) is None:
            continue
        phrases = _PHRASES.get(name, {}).get(value, ())
        adjectives = (value,) if name == "colour" else words.get(value, ())
        if adjectives and (not phrases or happens(rng, 0.65)):
            before.append(pick(rng, adjectives))
        elif phrases:
            behind.append(pick(rng, phrases))
    for name, of_value in _PHRASES.items():
        if name in said and name not in _ADJECTIVES:
            behind.append(pick(rng, of_value[said[name]]))
    if "background_colour" in said:
        behind.append(_on_colour(said["background_colour"], rng))
    return before, behind


def _on_colour(colour: str, rng: np.random.Generator) -> str:
    article = _article(colour)
    return pick(
        rng, (f"on {article} {colour} background", f"on {colour}", f"against {article} {colour} wall")
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _with_article(words: str, count: str) -> str:
    if count:
        return f"{count} {words}"
    return f"{_article(words)} {words}"


def _finished(said: dict[str, str], core: str, rng: np.random.Generator) -> str:
    """The noun phrase as a sentence of some kind, with the picture's quality where it is mentioned."""
    if "quality" in said:
        word, about = pick(rng, _QUALITY[said["quality"]]), pick(rng, _ABOUT)
        return f"{_article(word)} {word} {about} of {core}"
    be = "is" if core.startswith(("a ", "an ", "one ")) else "are"
    this = "this" if be == "is" else "these"
    openings = ("", "", "a picture of ", "a photo of ", "an image of ", f"there {be} ", f"{this} {be} ")
    return pick(rng, openings) + core + ("." if happens(rng, 0.3) else "")
