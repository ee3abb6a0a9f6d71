"""Nameable changes of pictures: what is done to the pixels of a batch, and how it is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # its usual name
from torch import Tensor

from recipes.pretrain_mini.captions import Change
from recipes.pretrain_mini.data import SIZE_PX

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05), "white": (0.97, 0.97, 0.97), "grey": (0.5, 0.5, 0.5),
    "red": (0.85, 0.12, 0.12), "orange": (0.95, 0.55, 0.1), "yellow": (0.95, 0.88, 0.2),
    "green": (0.15, 0.6, 0.2), "blue": (0.15, 0.3, 0.82), "purple": (0.5, 0.18, 0.65),
    "pink": (0.96, 0.6, 0.75), "brown": (0.42, 0.26, 0.12), "beige": (0.88, 0.8, 0.65),
}  # fmt: skip
_TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
_GREY_OF_RGB = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)

Pixels = Callable[[Tensor, torch.Generator], Tensor]


class Kind(NamedTuple):
    """A change and its pixel work, [n, 3, S, S] in 0..1 -> the same."""

    words: Change
    apply: Pixels
    group: str  # two changes of one group are never made together


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=rng)


# -- light and colour ------------------------------------------------------------------------------------


def _grey(x: Tensor) -> Tensor:
    return (x * _GREY_OF_RGB).sum(1, keepdim=True).expand_as(x)


def _black_and_white(x: Tensor, rng: torch.Generator) -> Tensor:
    return _grey(x)


def _dark(x: Tensor, rng: torch.Generator) -> Tensor:
    return x * _uniform(len(x), 0.15, 0.35, rng)


def _bright(x: Tensor, rng: torch.Generator) -> Tensor:
    return x * _uniform(len(x), 1.5, 2.0, rng) + _uniform(len(x), 0.1, 0.25, rng)


def _faded(x: Tensor, rng: torch.Generator) -> Tensor:
    return 0.6 + (x - 0.5) * _uniform(len(x), 0.2, 0.35, rng)


def _vivid(x: Tensor, rng: torch.Generator) -> Tensor:
    return _grey(x) + (x - _grey(x)) * _uniform(len(x), 2.2, 3.2, rng)


def _negative(x: Tensor, rng: torch.Generator) -> Tensor:
    return 1 - x


def _old(x: Tensor, rng: torch.Generator) -> Tensor:
    return _grey(x) * torch.tensor([1.0, 0.85, 0.62]).view(1, 3, 1, 1) + 0.05


def _tinted(colour: str) -> Pixels:
    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        tint = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1)
        share = _uniform(len(x), 0.4, 0.6, rng)
        return (1 - share) * x * (0.4 + tint) + share * tint

    return apply


def _few_colours(x: Tensor, rng: torch.Generator) -> Tensor:
    return (x * 2).round() / 2


def _drawn(x: Tensor, rng: torch.Generator) -> Tensor:
    grey = _grey(x)[:, :1]
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1, 0, 0), mode="replicate")
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1), mode="replicate")
    return (1 - 3 * (across.square() + down.square()).sqrt()).expand_as(x)


# -- sharpness -------------------------------------------------------------------------------------------


def _blurred(x: Tensor, rng: torch.Generator) -> Tensor:
    for _ in range(3):  # three boxes are nearly a bell
        x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return x


def _shaken(x: Tensor, rng: torch.Generator) -> Tensor:
    return F.avg_pool2d(F.pad(x, (6, 6, 0, 0), mode="replicate"), (1, 13), 1)


def _noisy(x: Tensor, rng: torch.Generator) -> Tensor:
    return x + _uniform(len(x), 0.12, 0.22, rng) * torch.randn(x.shape, generator=rng)


def _pixelated(x: Tensor, rng: torch.Generator) -> Tensor:
    n = int(torch.randint(8, 13, (), generator=rng))
    return F.interpolate(F.interpolate(x, (n, n), mode="area"), x.shape[-2:], mode="nearest")


# -- place and shape -------------------------------------------------------------------------------------


def _upside_down(x: Tensor, rng: torch.Generator) -> Tensor:
    return x.flip(2)


def _sideways(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.rot90(x, 1 if torch.rand((), generator=rng) < 0.5 else 3, (2, 3))


def _tilted(x: Tensor, rng: torch.Generator) -> Tensor:
    sign = torch.where(torch.rand(len(x), generator=rng) < 0.5, -1.0, 1.0)
    angle = sign * (0.4 + 0.4 * torch.rand(len(x), generator=rng))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _stretched(*, wide: bool) -> Pixels:
    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        size = x.shape[-1]
        cut = size // 4
        part = x[..., cut : size - cut, :] if not wide else x[..., cut : size - cut]
        return F.interpolate(part, (size, size), mode="bilinear", align_corners=False)

    return apply


def _close(x: Tensor, rng: torch.Generator) -> Tensor:
    n = x.shape[-1] * 3 // 8
    top, left = (int(torch.randint(x.shape[-1] - n, (), generator=rng)) for _ in range(2))
    part = x[..., top : top + n, left : left + n]
    return F.interpolate(part, x.shape[-2:], mode="bicubic", align_corners=False)


def _fill(x: Tensor, rng: torch.Generator) -> Tensor:
    """A plain random colour a picture."""
    return torch.rand(len(x), 3, 1, 1, generator=rng).expand_as(x).clone()


def _placed(top: float, left: float, share: float = 0.5) -> Pixels:
    """The picture made smaller and laid on a plain colour; ``top`` and ``left`` from 0 to 1."""

    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        size = x.shape[-1]
        n = round(size * share)
        y, z = round(top * (size - n)), round(left * (size - n))
        canvas = _fill(x, rng)
        canvas[..., y : y + n, z : z + n] = F.interpolate(x, (n, n), mode="area")
        return canvas

    return apply


def _half(rows: slice, columns: slice) -> Pixels:
    """One half of the picture stays where it is, the rest is covered with a plain colour."""

    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        canvas = _fill(x, rng)
        canvas[..., rows, columns] = x[..., rows, columns]
        return canvas

    return apply


# -- things added ----------------------------------------------------------------------------------------


def _framed(colour: str) -> Pixels:
    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        wide = int(torch.randint(5, 10, (), generator=rng))
        inner = x.shape[-1] - 2 * wide
        canvas = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1).expand_as(x).clone()
        canvas[..., wide:-wide, wide:-wide] = F.interpolate(x, (inner, inner), mode="area")
        return canvas

    return apply


def _covered(colour: str) -> Pixels:
    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        x = x.clone()
        n = int(torch.randint(20, 30, (), generator=rng))
        top, left = (int(torch.randint(x.shape[-1] - n, (), generator=rng)) for _ in range(2))
        x[..., top : top + n, left : left + n] = torch.tensor(COLOURS[colour]).view(1, 3, 1, 1)
        return x

    return apply


def _barred(*, upright: bool) -> Pixels:
    def apply(x: Tensor, rng: torch.Generator) -> Tensor:
        step = int(torch.randint(9, 14, (), generator=rng))
        bars = (torch.arange(x.shape[-1]) % step) < 3
        mask = bars.view(1, 1, 1, -1) if upright else bars.view(1, 1, -1, 1)
        return torch.where(mask, _fill(x, rng), x)

    return apply


def _kind(group: str, apply: Pixels, fact: str, adjectives: str, tails: str) -> Kind:
    """A kind whose words are given as one text, separated by semicolons."""
    before, behind = (tuple(w for w in text.split("; ") if w) for text in (adjectives, tails))
    return Kind(Change(fact, before, behind), apply, group)


_ALL, _LOW, _HIGH = slice(None), slice(None, SIZE_PX // 2), slice(SIZE_PX // 2, None)
_CORNERS = {
    "top left": (0.0, 0.0),
    "top right": (0.0, 1.0),
    "bottom left": (1.0, 0.0),
    "bottom right": (1.0, 1.0),
}

KINDS: tuple[Kind, ...] = (
    _kind("colour", _black_and_white, "in black and white", "black and white; grey; colourless",
          "in black and white; without colours"),
    _kind("light", _dark, "dark", "dark; very dark", "in the dark; at night; with little light"),
    _kind("light", _bright, "bright", "bright; overexposed", "with too much light; in bright light"),
    _kind("light", _faded, "faded", "faded; pale", "in fog; washed out"),
    _kind("colour", _vivid, "vivid", "colourful; vivid", "in strong colours"),
    _kind("colour", _negative, "negative", "negative; inverted", "with inverted colours"),
    _kind("colour", _old, "old", "old; sepia", "in brown tones; from long ago"),
    _kind("colour", _few_colours, "few colours", "posterized", "with few colours; painted"),
    _kind("colour", _drawn, "drawn", "drawn", "as a sketch; as a line drawing; drawn with a pencil"),
    *(_kind("colour", _tinted(c), f"tint {c}", f"{c}-tinted; {'' if c == 'orange' else f'{c}ish'}",
            f"in {c} light; tinted {c}; seen through {c} glass")
      for c in _TINTS),
    _kind("sharp", _blurred, "blurred", "blurry; blurred", "out of focus; not sharp"),
    _kind("sharp", _shaken, "shaken", "shaken; moving", "in motion; moving fast"),
    _kind("sharp", _noisy, "noisy", "noisy; grainy", "with a lot of noise"),
    _kind("sharp", _pixelated, "pixelated", "pixelated; low resolution", "in large pixels"),
    _kind("turn", _upside_down, "upside down", "upside down", "upside down; standing on its head"),
    _kind("turn", _sideways, "sideways", "rotated", "turned sideways; lying on its side"),
    _kind("turn", _tilted, "tilted", "tilted; slanted", "tilted; at an angle"),
    _kind("shape", _stretched(wide=True), "wide", "stretched", "stretched wide; too wide"),
    _kind("shape", _stretched(wide=False), "tall", "narrow", "stretched tall; too tall"),
    _kind("crop", _close, "close", "close-up; cropped", "cropped close; seen from very near; a detail"),
    *(_kind("place", _placed(*at), f"small {corner}", "", f"in the {corner} corner; small, at the {corner}")
      for corner, at in _CORNERS.items()),
    _kind("place", _placed(0.5, 0.5, 0.45), "small middle", "small", "small, in the middle; far away"),
    _kind("place", _half(_ALL, _LOW), "left half", "", "on the left; only the left half; at the left side"),
    _kind("place", _half(_ALL, _HIGH), "right half", "",
          "on the right; only the right half; at the right side"),
    _kind("place", _half(_LOW, _ALL), "top half", "", "at the top; only the upper half"),
    _kind("place", _half(_HIGH, _ALL), "bottom half", "", "at the bottom; only the lower half"),
    *(_kind("frame", _framed(c), f"frame {c}", f"{c}-framed",
            f"in a {c} frame; with a {c} border; on a {c} background")
      for c in COLOURS),
    *(_kind("frame", _covered(c), f"cover {c}", "", f"behind a {c} square; partly hidden by a {c} square")
      for c in COLOURS if c not in ("grey", "beige")),
    _kind("frame", _barred(upright=True), "bars", "barred", "behind bars; with vertical stripes"),
    _kind("frame", _barred(upright=False), "blinds", "", "behind blinds; with horizontal stripes"),
)  # fmt: skip

# Frames and covers come in many colours; each colour counts as a fraction of a kind.
_ORDER = {"colour": 0, "light": 1, "crop": 2, "turn": 3, "shape": 4, "place": 5, "frame": 6, "sharp": 7}
_WEIGHTS = np.array([{"frame": 0.3, "place": 0.6}.get(k.group, 1.0) for k in KINDS])
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def draw_changes(n: int, rng: np.random.Generator) -> list[int]:
    """Indices of ``n`` kinds of change that go together, in the order in which they are made."""
    chosen: list[int] = []
    for i in rng.choice(len(KINDS), size=8, replace=False, p=_WEIGHTS):
        if len(chosen) < n and KINDS[i].group not in {KINDS[k].group for k in chosen}:
            chosen.append(int(i))
    return sorted(chosen, key=lambda i: _ORDER[KINDS[i].group])


def apply_changes(images: Tensor, chosen: Sequence[Sequence[int]], rng: torch.Generator) -> Tensor:
    """The batch with each picture changed as its list says; a kind is worked on all its pictures at once."""
    depth = max((len(list_) for list_ in chosen), default=0)
    for step in range(depth):
        rows: dict[int, list[int]] = {}
        for row, list_ in enumerate(chosen):
            if step < len(list_):
                rows.setdefault(list_[step], []).append(row)
        for kind, where in rows.items():
            images[where] = KINDS[kind].apply(images[where], rng).clamp(0, 1)
    return images


def crop_and_flip(images: Tensor, rng: torch.Generator, *, least: float = 0.25) -> Tensor:
    """A random part, of at least this share of the area, of each picture at full size; half are mirrored."""
    n = len(images)
    share = least + (1 - least) * torch.rand(n, generator=rng)
    ratio = torch.exp((2 * torch.rand(n, generator=rng) - 1) * math.log(4 / 3) / 2)
    wide, high = (share.sqrt() * ratio).clamp(max=1), (share.sqrt() / ratio).clamp(max=1)
    x, y = ((1 - side) * (2 * torch.rand(n, generator=rng) - 1) for side in (wide, high))
    mirror = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    matrix = torch.stack([torch.stack([wide * mirror, zero, x], 1), torch.stack([zero, high, y], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def jitter(images: Tensor, rng: torch.Generator) -> Tensor:
    """A little more or less light and contrast, too little to be named."""
    n = len(images)
    return ((images - 0.5) * _uniform(n, 0.85, 1.15, rng) + 0.5 + _uniform(n, -0.08, 0.08, rng)).clamp(0, 1)
