"""A small multi-task suite of drawn pictures, for the demo and for tests: needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw
from ruamel.yaml import YAML

from softcpt.core.errors import Fault, SuiteError, nearest
from softcpt.core.seeds import stream

Colour = tuple[int, int, int]

_COLOURS: Final[dict[str, Colour]] = {
    "red": (205, 45, 40),
    "green": (50, 160, 70),
    "blue": (50, 85, 200),
    "yellow": (235, 200, 50),
}
_PLACES: Final = {
    "top_left": (0.3, 0.3),
    "top_right": (0.7, 0.3),
    "bottom_left": (0.3, 0.7),
    "bottom_right": (0.7, 0.7),
}
_CORNERS: Final = {"triangle": 3, "square": 4, "hexagon": 6}
_NUMBERS: Final = {"one": 1, "two": 2, "four": 4}
_SMOOTHING: Final = 3  # drawn so many times larger, then scaled down


@dataclass(frozen=True)
class _Look:
    """What a picture shows; whatever its task does not ask for is left to chance."""

    shape: str
    colour: str
    pattern: str
    place: str | None  # None: anywhere near the middle
    number: int


@dataclass(frozen=True)
class _DrawnTask:
    description: str
    template: str
    metric: str
    classes: tuple[str, ...]
    asked: str  # the attribute of _Look that the class sets


_TASKS: Final[dict[str, _DrawnTask]] = {
    "shape": _DrawnTask(
        "a recognition task for simple shapes.",
        "a drawing of a {}.",
        "overall_acc",
        ("circle", "triangle", "square", "hexagon"),
        "shape",
    ),
    "colour": _DrawnTask(
        "a colour recognition task.", "a drawing of a {} thing.", "mean_acc", tuple(_COLOURS), "colour"
    ),
    "pattern": _DrawnTask(
        "a surface pattern recognition task.",
        "a drawing of a {} surface.",
        "overall_acc",
        ("plain", "striped", "dotted"),
        "pattern",
    ),
    "position": _DrawnTask(
        "a task about where a thing lies in the picture.",
        "a drawing of a thing at the {}.",
        "overall_acc",
        tuple(_PLACES),
        "place",
    ),
    "number": _DrawnTask(
        "a counting task.", "a drawing of {} things.", "mean_acc", tuple(_NUMBERS), "number"
    ),
}


def draw_suite(
    folder: Path,
    *,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    images_per_class: int = 24,
    size_px: int = 64,
) -> Path:
    """The folder, filled with a suite of drawn pictures in the ordinary layout, ``suite.yaml`` included.

    An image depends on the seed, its task, its class and its number alone.

    Args:
        folder: new or empty.
        seed: of shapes, colours, places and clutter.
        tasks: some of ``shape colour pattern position number``, in order; all by default.
        images_per_class: at least 1.
        size_px: height and width.

    Raises:
        SuiteError: an unknown task, or a folder that is not empty.
    """
    names = list(_TASKS if tasks is None else tasks)
    faults = [
        Fault("tasks", f'no drawn task "{name}"', nearest(name, _TASKS))
        for name in names
        if name not in _TASKS
    ]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        faults.append(Fault(str(folder), "is not an empty folder", "name another"))
    if faults:
        raise SuiteError(faults, about="the suite to draw")
    for name in names:
        for label in _TASKS[name].classes:
            inner = folder / name / label
            inner.mkdir(parents=True)
            for i in range(images_per_class):
                rng = stream("drawn", seed, name, label, i)
                _picture(name, label, rng, size_px).save(inner / f"{i:03d}.png")
    _write_suite_file(folder / "suite.yaml", names)
    return folder


def _write_suite_file(path: Path, names: Sequence[str]) -> None:
    content = {
        "name": "drawn",
        "description": "Pictures drawn by the package: shapes, colours, patterns, positions and numbers.",
        "source": "drawn by softcpt.data.drawn",
        "tasks": [
            {
                "name": name,
                "description": _TASKS[name].description,
                "template": _TASKS[name].template,
                "metric": _TASKS[name].metric,
                "classes": {label: label.replace("_", " ") for label in _TASKS[name].classes},
            }
            for name in names
        ],
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def _picture(task: str, label: str, rng: np.random.Generator, size_px: int) -> Image.Image:
    """One picture: a grey ground, some clutter, the things, and noise over all."""
    look = _look(task, label, rng)
    size = size_px * _SMOOTHING
    ground = int(rng.integers(150, 245))
    picture = Image.new("RGB", (size, size), (ground, ground, ground))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 7))):
        ends = [tuple(float(v) for v in rng.uniform(0, size, 2)) for _ in range(2)]
        shade = int(np.clip(ground + rng.integers(-40, 20), 0, 255))
        pen.line(ends, fill=(shade, shade, shade), width=_SMOOTHING)
    for centre, radius in _spots(look, rng):
        _draw_thing(picture, look, (centre[0] * size, centre[1] * size), radius * size, rng)
    picture = picture.resize((size_px, size_px), Image.Resampling.BOX)
    noisy = np.asarray(picture, dtype=np.float64) + rng.normal(0, 8, (size_px, size_px, 3))
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _look(task: str, label: str, rng: np.random.Generator) -> _Look:
    def any_of(values: Sequence[str]) -> str:
        return values[int(rng.integers(len(values)))]

    chance: dict[str, str] = {
        "shape": any_of(_TASKS["shape"].classes),
        "colour": any_of(tuple(_COLOURS)),
        "pattern": any_of(_TASKS["pattern"].classes),
        "place": "",
        "number": "one",
    }
    chance[_TASKS[task].asked] = label
    return _Look(
        chance["shape"],
        chance["colour"],
        chance["pattern"],
        chance["place"] or None,
        _NUMBERS[chance["number"]],
    )


def _spots(look: _Look, rng: np.random.Generator) -> list[tuple[tuple[float, float], float]]:
    """Centres and radii of the things, as shares of the picture's side."""
    if look.number > 1:
        # Corners of the picture, shuffled, so that things do not lie on each other.
        corners = list(_PLACES.values())
        chosen = [corners[i] for i in rng.permutation(len(corners))[: look.number]]
        return [(_moved(centre, 0.05, rng), float(rng.uniform(0.12, 0.18))) for centre in chosen]
    if look.place is not None:
        return [(_moved(_PLACES[look.place], 0.08, rng), float(rng.uniform(0.14, 0.22)))]
    return [(_moved((0.5, 0.5), 0.12, rng), float(rng.uniform(0.22, 0.36)))]


def _moved(centre: tuple[float, float], by: float, rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(-by, by, 2)
    return centre[0] + float(x), centre[1] + float(y)


def _draw_thing(
    picture: Image.Image,
    look: _Look,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """A shape filled with its pattern."""
    mask = Image.new("L", picture.size, 0)
    pen = ImageDraw.Draw(mask)
    x, y = centre
    if look.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        turn = float(rng.uniform(-0.2, 0.2))
        corners = _CORNERS[look.shape]
        # a square lies on a side, the others stand on a corner
        turn += math.pi / 4 if corners == 4 else 0.0
        pen.polygon(
            [
                (
                    x + radius * math.sin(turn + 2 * math.pi * k / corners),
                    y - radius * math.cos(turn + 2 * math.pi * k / corners),
                )
                for k in range(corners)
            ],
            fill=255,
        )
    picture.paste(_surface(picture.size, look, radius, rng), mask=mask)


def _surface(size: tuple[int, int], look: _Look, radius: float, rng: np.random.Generator) -> Image.Image:
    base = np.array(_COLOURS[look.colour]) + rng.integers(-18, 19, 3)
    colour = tuple(int(v) for v in np.clip(base, 0, 255))
    dark = tuple(v // 3 for v in colour)
    surface = Image.new("RGB", size, colour)
    paint: dict[str, Callable[[ImageDraw.ImageDraw, float], None]] = {
        "striped": lambda pen, step: _stripes(pen, size, step, dark),
        "dotted": lambda pen, step: _dots(pen, size, step, dark),
    }
    if look.pattern in paint:
        paint[look.pattern](ImageDraw.Draw(surface), radius * float(rng.uniform(0.35, 0.5)))
    return surface


def _stripes(pen: ImageDraw.ImageDraw, size: tuple[int, int], step: float, fill: tuple[int, ...]) -> None:
    for k in range(int(size[0] / step) + 1):
        pen.rectangle((k * step, 0, (k + 0.45) * step, size[1]), fill=fill)


def _dots(pen: ImageDraw.ImageDraw, size: tuple[int, int], step: float, fill: tuple[int, ...]) -> None:
    for k in range(int(size[0] / step) + 1):
        for j in range(int(size[1] / step) + 1):
            x, y = k * step, j * step
            pen.ellipse((x, y, x + 0.55 * step, y + 0.55 * step), fill=fill)
