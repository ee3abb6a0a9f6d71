"""Digits and letters in several fonts, drawn once as masks; colours and place are chosen for each use."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # its usual name
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recipes.pretrain_mini.captions import Caption, Words
from recipes.pretrain_mini.changes import COLOURS
from recipes.pretrain_mini.data import SIZE_PX

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIGNS = string.digits + string.ascii_letters


class Glyphs(NamedTuple):
    """Masks of signs.

    Attributes:
        masks: [N, 64, 64], 255 where the sign is.
        facts: of each, without colours.
    """

    masks: NDArray[np.uint8]
    facts: list[frozenset[str]]


def draw_glyphs(fonts: Sequence[Path]) -> Glyphs:
    """Every sign in every font."""
    masks, facts = [], []
    for font in fonts:
        letters = ImageFont.truetype(str(font), 44)
        style = _style(font.stem)
        for sign in SIGNS:
            image = Image.new("L", (SIZE_PX, SIZE_PX))
            ImageDraw.Draw(image).text((SIZE_PX // 2, SIZE_PX // 2), sign, 255, font=letters, anchor="mm")
            masks.append(np.asarray(image))
            facts.append(frozenset([_name(sign), *style, *_case(sign)]))
    return Glyphs(np.stack(masks) if masks else np.zeros((0, SIZE_PX, SIZE_PX), np.uint8), facts)


def find_fonts(folders: Sequence[Path]) -> list[Path]:
    """The font files of some folders that have letters of the usual kind."""
    return sorted(
        {
            file.name: file for folder in folders for file in folder.rglob("*.ttf") if "Math" not in file.name
        }.values()
    )


def _name(sign: str) -> str:
    return f"digit {_DIGITS[int(sign)]}" if sign.isdigit() else f"letter {sign.lower()}"


def _case(sign: str) -> list[str]:
    if sign.isdigit():
        return []
    return ["capital letter" if sign.isupper() else "small letter"]


def _style(font: str) -> list[str]:
    kinds = {
        "Bold": "bold",
        "Oblique": "slanted",
        "Italic": "slanted",
        "Serif": "serif",
        "Mono": "typewriter",
    }
    return sorted({style for key, style in kinds.items() if key in font})


def lay_glyphs(backgrounds: Tensor, masks: Tensor, colours: Tensor, rng: torch.Generator) -> Tensor:
    """Signs laid on pictures, each moved, turned and scaled a little: [n, 3, S, S]."""
    n = len(masks)
    angle = 0.35 * (2 * torch.rand(n, generator=rng) - 1)
    scale = 0.85 + 0.8 * torch.rand(n, generator=rng)
    shift = 0.35 * (2 * torch.rand(n, 2, generator=rng) - 1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(matrix, [n, 1, *masks.shape[-2:]], align_corners=False)
    soft = F.grid_sample(masks[:, None].float() / 255, grid, align_corners=False)
    return soft * colours.view(n, 3, 1, 1) + (1 - soft) * backgrounds


def caption_glyph(
    facts: frozenset[str], colour: str, ground: str, words: Words
) -> tuple[Caption, frozenset[str]]:
    """A caption of a sign in a colour on a ground (a colour or ``"photo"``), and all that is true of it."""
    name = next(f for f in facts if f.startswith(("digit", "letter")))
    is_digit, what = name.startswith("digit"), name.split()[1]
    has = {*facts, f"sign {colour}", f"ground {ground}", "digit" if is_digit else "letter"}
    needs, sign = {name}, what if not is_digit or words.chance(0.6) else str(_DIGITS.index(what))
    noun = words.pick(
        ("the digit {}", "the number {}", "a {}") if is_digit else ("the letter {}", "a letter {}")
    )
    if not is_digit and words.chance(0.4):
        case = next(f for f in facts if f.endswith(" letter"))
        needs.add(case)
        noun = {"capital letter": "a capital {}", "small letter": "a lowercase {}"}[case]
        sign = sign.upper() if case == "capital letter" else sign
    text = noun.format(sign)
    if words.chance(0.5):
        needs.add(f"sign {colour}")
        article, rest = text.split(" ", 1)
        text = f"{'an' if article != 'the' and colour[0] in 'aeiou' else article} {colour} {rest}".replace(
            "an the", "the"
        )
    styles = sorted(facts & {"bold", "slanted", "serif", "typewriter"})
    if styles and words.chance(0.4):
        style = words.pick(styles)
        needs.add(style)
        text += {"bold": " in bold", "slanted": " in italics", "serif": " with serifs",
                 "typewriter": " in typewriter letters"}[style]  # fmt: skip
    if words.chance(0.5):
        needs.add(f"ground {ground}")
        text += " on a photo" if ground == "photo" else f" on a {ground} background"
    return Caption(
        words.pick(("{}", "{}.", "a picture of {}.", "this is {}.", "here is {}")).format(text),
        frozenset(needs),
    ), frozenset(has)


def colour_values(names: Sequence[str]) -> Tensor:
    """[n, 3] of colours by name."""
    return torch.tensor([COLOURS[name] for name in names])
