"""How a backbone wants its pixels: numbers only, so that no room needs another's library for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Resize = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """Size and normalisation of a backbone's input, taken from the backbone, never constants.

    Attributes:
        size_px: height and width of the square input.
        mean: per channel (red, green, blue), of values in [0, 1].
        std: likewise.
        interpolation: how pictures are scaled.
        resize: ``shortest`` scales the shorter side to ``size_px`` and cuts the centre; ``longest``
            scales the longer side and pads; ``squash`` ignores the aspect ratio.
        fill: grey level (0 to 255) of padding.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"
    fill: int = 0
