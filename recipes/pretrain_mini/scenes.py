"""The package's own drawn scenes and their captions, drawn once into a file; seeds unlike the suites'."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.pretrain_mini.data import SIZE_PX
from softcpt.builtin.captions import describe
from softcpt.builtin.draw import draw
from softcpt.builtin.scene import Scene, sample_scene
from softcpt.builtin.scenes import HELD_OUT_TASKS, SCENE_TASKS

CAPTIONS_A_SCENE = 6
# The suites' seeds are small; these never meet them.
_FIRST_SEED = 1_000_000_000


class Scenes(NamedTuple):
    """Drawn pictures: [N, 64, 64, 3], and several captions of each."""

    pixels: NDArray[np.uint8]
    captions: list[list[str]]


def draw_scenes(n: int, cache: Path) -> None:
    """Draw and describe ``n`` scenes into ``cache``; the held-out tasks' attributes are never mentioned."""
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / "scenes.part"
    pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(n, SIZE_PX, SIZE_PX, 3))
    captions = []
    for i in range(n):
        rng = np.random.default_rng(_FIRST_SEED + i)
        scene = any_scene(rng) if i % 2 else sample_scene(rng)
        pixels[i] = np.asarray(draw(scene, rng, SIZE_PX))
        captions.append([describe(scene, rng, leave_out=HELD_OUT_TASKS) for _ in range(CAPTIONS_A_SCENE)])
    pixels.flush()
    (cache / "scenes.json").write_text(json.dumps(captions), "utf-8")
    os.replace(part, cache / "scenes.npy")  # noqa: PTH105  # atomic; its presence says that all is there


def any_scene(rng: np.random.Generator) -> Scene:
    """A scene with the value of one attribute as likely as any other, so that rare ones are learned too."""
    names = [name for name in SCENE_TASKS if name not in HELD_OUT_TASKS]
    name = names[int(rng.integers(len(names)))]
    values = list(SCENE_TASKS[name].classes)
    return sample_scene(rng, {name: values[int(rng.integers(len(values)))]}, SCENE_TASKS[name].among)


def held_out_tasks() -> tuple[str, ...]:
    """Tasks of the built-in suite that no caption speaks of."""
    return tuple(HELD_OUT_TASKS)


def read_scenes(cache: Path) -> Scenes | None:
    """The scenes of a cache, or None where none were drawn."""
    if not (cache / "scenes.npy").exists():
        return None
    captions = json.loads((cache / "scenes.json").read_text("utf-8"))
    return Scenes(np.load(cache / "scenes.npy", mmap_mode="r"), captions)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--scenes", type=int, default=24_000)
    args = parser.parse_args()
    draw_scenes(args.scenes, args.cache)


if __name__ == "__main__":
    main()
