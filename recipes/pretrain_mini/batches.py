"""Batches of pictures with one caption each, and what is true of every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.pretrain_mini.captions import Caption, Subject, Words, fact_of
from recipes.pretrain_mini.changes import COLOURS, KINDS, apply_changes, crop_and_flip, draw_changes, jitter
from recipes.pretrain_mini.data import Photos
from recipes.pretrain_mini.glyphs import Glyphs, caption_glyph, colour_values, lay_glyphs
from recipes.pretrain_mini.scenes import Scenes

MIXTURE: Mapping[str, float] = {"glyphs": 0.05, "scenes": 0.1, "pairs": 0.05, "twins": 0.14}
"""Shares of a batch; the rest are photographs by themselves. Twins are one photograph changed in two ways and
pairs are two photographs in one picture, in both orders: only context words tell them apart."""

CHANGED = 0.3  # of the photographs by themselves
_UNMENTIONED = 0.12  # of the changed ones: their captions are true all the same
_COLOUR_NAMES = tuple(COLOURS)


class Batch(NamedTuple):
    """Pictures [B, 3, S, S] in 0..1, and of each a caption, its facts, and whether it is a twin or a pair."""

    images: Tensor
    captions: list[Caption]
    has: list[frozenset[str]]
    hard: list[bool]


@dataclass(frozen=True)
class Material:
    """All that batches are made of; scenes and glyphs may be missing."""

    photos: Photos
    subjects: list[Subject]
    glyphs: Glyphs | None = None
    scenes: Scenes | None = None


class Batches:
    """Batch ``step`` is a function of the seed and the step, so a run can go on where it stopped."""

    def __init__(self, material: Material, *, size: int, seed: int) -> None:
        self._material, self._size, self._seed = material, size, seed
        self._counts = {name: 2 * round(size * share / 2) for name, share in MIXTURE.items()}
        for name in ("glyphs", "scenes"):
            if not getattr(material, name):
                self._counts[name] = 0
        # Two whole sentences would make a caption too long.
        names = [len(subject.phrases[0].split()) <= 4 for subject in material.subjects]
        self._short = np.array([i for i in material.photos.usable if names[i]])
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self._seed, step))
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        words = Words(rng)
        n_photos = self._size - sum(self._counts.values()) + self._counts["twins"] // 2
        parts = [self._photographs(self._photo_indices(step, n_photos), rng, torch_rng, words)]
        if self._counts["pairs"]:
            parts.append(self._pairs(self._counts["pairs"], rng, torch_rng, words))
        if self._material.glyphs and self._counts["glyphs"]:
            parts.append(self._glyphs(self._material.glyphs, self._counts["glyphs"], rng, torch_rng, words))
        if self._material.scenes and self._counts["scenes"]:
            parts.append(self._scenes(self._material.scenes, self._counts["scenes"], rng, torch_rng, words))
        return Batch(
            torch.cat([part.images for part in parts]),
            [caption for part in parts for caption in part.captions],
            [has for part in parts for has in part.has],
            [hard for part in parts for hard in part.hard],
        )

    def _photo_indices(self, step: int, n: int) -> np.ndarray:
        """The next photographs; all have had their turn before one comes again."""
        usable = self._material.photos.usable
        found = []
        for k in range(step * n, (step + 1) * n):
            epoch, at = divmod(k, len(usable))
            if self._order[0] != epoch:
                self._order = epoch, np.random.default_rng((self._seed, 1, epoch)).permutation(usable)
            found.append(int(self._order[1][at]))
        return np.array(found)

    def _images(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        order = np.argsort(indices)  # in the order of the file, for the disk's sake
        pixels = np.empty((len(indices), *self._material.photos.pixels.shape[1:]), np.uint8)
        for i in order:
            pixels[i] = self._material.photos.pixels[indices[i]]
        return to_images(pixels)

    def _photographs(
        self, indices: np.ndarray, rng: np.random.Generator, torch_rng: torch.Generator, words: Words
    ) -> Batch:
        n_twins = self._counts["twins"] // 2
        chosen = [draw_changes(_how_many(rng), rng) if rng.random() < CHANGED else [] for _ in indices]
        for i in range(n_twins):
            chosen[i] = draw_changes(_how_many(rng), rng)
        indices = np.concatenate([indices, indices[:n_twins]])
        chosen += [draw_changes(_how_many(rng), rng) for _ in range(n_twins)]
        images = jitter(crop_and_flip(self._images(indices), torch_rng), torch_rng)
        colours = main_colours(images)
        images = apply_changes(images, chosen, torch_rng)
        captions, has = [], []
        for index, kinds, colour in zip(indices, chosen, colours, strict=True):
            subject, changes = self._material.subjects[index], [KINDS[k].words for k in kinds]
            facts = subject.facts | {change.fact for change in changes}
            if colour and not kinds:
                facts |= {f"mostly {colour}"}
            if colour and not kinds and words.chance(0.06):
                captions.append(words.coloured(subject, colour))
            else:
                captions.append(words.describe(subject, () if words.chance(_UNMENTIONED) else changes))
            has.append(facts)
        hard = [i < n_twins or i >= len(chosen) - n_twins for i in range(len(chosen))]
        return Batch(images, captions, has, hard)

    def _pairs(self, n: int, rng: np.random.Generator, torch_rng: torch.Generator, words: Words) -> Batch:
        """Two photographs side by side or one above the other, and the same two the other way round."""
        first, second = (rng.choice(self._short, n // 2) for _ in range(2))
        a, b = (
            jitter(crop_and_flip(self._images(i), torch_rng, least=0.5), torch_rng) for i in (first, second)
        )
        rows = [(i, j, bool(rng.random() < 0.5)) for i, j in zip(first, second, strict=True)]
        images, captions, has = [], [], []
        for x, y, is_swapped in ((a, b, False), (b, a, True)):
            for k, (i, j, beside) in enumerate(rows):
                left, right = (j, i) if is_swapped else (i, j)
                cut = (slice(None), slice(None), slice(16, 48)) if beside else (slice(None), slice(16, 48))
                images.append(torch.cat([x[k][cut], y[k][cut]], dim=2 if beside else 1))
                caption, facts = pair_caption(
                    self._material.subjects[left], self._material.subjects[right], words, beside=beside
                )
                captions.append(caption)
                has.append(facts)
        return Batch(torch.stack(images), captions, has, [True] * n)

    def _glyphs(
        self, glyphs: Glyphs, n: int, rng: np.random.Generator, torch_rng: torch.Generator, words: Words
    ) -> Batch:
        chosen = rng.integers(len(glyphs.facts), size=n)
        pairs = [rng.choice(len(_COLOUR_NAMES), 2, replace=False) for _ in range(n)]
        colours = [_COLOUR_NAMES[c] for c, _ in pairs]
        grounds = [_COLOUR_NAMES[g] for _, g in pairs]
        back = colour_values(grounds).view(n, 3, 1, 1).expand(n, 3, *glyphs.masks.shape[1:]).clone()
        on_photo = np.flatnonzero(rng.random(n) < 0.3)
        if len(on_photo):
            back[on_photo] = crop_and_flip(
                self._images(rng.choice(self._material.photos.usable, len(on_photo))), torch_rng
            )
        grounds = ["photo" if i in set(on_photo) else ground for i, ground in enumerate(grounds)]
        images = lay_glyphs(back, torch.from_numpy(glyphs.masks[chosen]), colour_values(colours), torch_rng)
        images = jitter(images + 0.03 * torch.randn(images.shape, generator=torch_rng), torch_rng)
        said = [
            caption_glyph(glyphs.facts[i], colour, ground, words)
            for i, colour, ground in zip(chosen, colours, grounds, strict=True)
        ]
        return Batch(images, [caption for caption, _ in said], [has for _, has in said], [False] * n)

    def _scenes(
        self, scenes: Scenes, n: int, rng: np.random.Generator, torch_rng: torch.Generator, words: Words
    ) -> Batch:
        chosen = rng.integers(len(scenes.captions), size=n)
        images = to_images(scenes.pixels[np.sort(chosen)])
        mirrored = torch.rand(n, generator=torch_rng) < 0.5
        images[mirrored] = images[mirrored].flip(3)
        texts = [words.pick(scenes.captions[i]) for i in np.sort(chosen)]
        has = [frozenset(scenes.captions[i]) for i in np.sort(chosen)]
        captions = [Caption(text, frozenset({text})) for text in texts]
        return Batch(jitter(images, torch_rng), captions, has, [False] * n)


def to_images(pixels: np.ndarray) -> Tensor:
    """[N, S, S, 3] bytes -> [N, 3, S, S] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


def _how_many(rng: np.random.Generator) -> int:
    return int(rng.choice([1, 2, 3], p=[0.65, 0.27, 0.08]))


def main_colours(images: Tensor) -> list[str]:
    """The colour of each picture's middle by name, or ``""`` where it is mixed or between two names."""
    middle = images[..., 16:48, 16:48].flatten(2)
    near = torch.cdist(middle.mean(2), colour_values(_COLOUR_NAMES))
    two = near.topk(2, largest=False)
    clear = (two.values[:, 0] < 0.2) & (two.values[:, 1] - two.values[:, 0] > 0.08)
    clear &= middle.std(2).mean(1) < 0.2
    return [
        _COLOUR_NAMES[k] if ok else ""
        for k, ok in zip(two.indices[:, 0].tolist(), clear.tolist(), strict=True)
    ]


def pair_caption(
    first: Subject, second: Subject, words: Words, *, beside: bool
) -> tuple[Caption, frozenset[str]]:
    """A caption of two photographs in one picture, and all that is true of it."""
    a, b = words.pick(first.phrases), words.pick(second.phrases)
    sign = "|" if beside else "/"
    both = {f"{fact_of(x)} {sign} {fact_of(y)}" for x in first.phrases for y in second.phrases}
    facts = first.facts | second.facts | both
    need = frozenset({f"{fact_of(a)} {sign} {fact_of(b)}"})
    frames = (
        ("{a} on the left and {b} on the right", "{a} beside {b}", "two pictures side by side: {a} and {b}",
         "on the right {b}, on the left {a}", "{a} left of {b}")
        if beside
        else ("{a} above {b}", "{b} below {a}", "{a} at the top and {b} at the bottom", "{a} over {b}")
    )  # fmt: skip
    return Caption(words.pick(frames).format(a=a, b=b), need), facts
