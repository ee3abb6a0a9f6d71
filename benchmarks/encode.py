"""Claim: how many images and class prompts a backbone encodes in a second.

    python benchmarks/encode.py --backbone mini [--threads 1] [--rounds 7]

Prints medians of rounds: images of the backbone's own size, decoded already, in batches of 64; prompts
of ImageNet's names in "a photo of a {}.", through the fast text encoder and the plain one, without gradients.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

from softcpt.clip.backbone import load_backbone
from softcpt.data.record import Task
from softcpt.engine.adapter import problem_of
from softcpt.engine.config import EncoderConfig
from softcpt.methods.base import Problem
from softcpt.methods.zero_shot import ZeroShot

N_IMAGES = 256
N_PROMPTS = 200


def per_second(work: Callable[[], object], count: int, rounds: int) -> float:
    """The median over rounds, after one to warm up."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return count / statistics.median(seconds)


def encode(problem: Problem) -> None:
    """The text features of all classes."""
    with torch.no_grad():
        ZeroShot(problem).class_features()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES as NAMES

    backbone = load_backbone(asked.backbone)
    size = backbone.pixels.size_px
    pixels = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = per_second(
            lambda: [backbone.encode_images(pixels) for _ in range(N_IMAGES // 64)], N_IMAGES, asked.rounds
        )
    print(f"images, {size} px: {images:.0f} a second")
    task = Task("things", tuple(dict.fromkeys(NAMES))[:N_PROMPTS])
    paths: tuple[Literal["fast", "plain"], ...] = ("fast", "plain")
    for path in paths:
        problem = problem_of([task], backbone, EncoderConfig(text_encoder=path))
        rate = per_second(partial(encode, problem), N_PROMPTS, asked.rounds)
        print(f"prompts, {path} text encoder: {rate:.0f} a second")


if __name__ == "__main__":
    main()
