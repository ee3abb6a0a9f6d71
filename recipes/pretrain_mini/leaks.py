"""That no picture of a suite is in the corpus: ``python -m recipes.pretrain_mini.leaks CACHE SUITE ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.pretrain_mini.data import SIZE_PX
from softcpt.data.suite import load_suite

MOST_BITS = 6
"""Pictures whose hashes differ in no more bits are taken for the same."""

Hashes = NDArray[np.uint64]


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than its right neighbour."""
    cells = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = (cells[:, :-1] > cells[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_pairs(ours: Hashes, theirs: Hashes, most_bits: int = MOST_BITS) -> list[tuple[int, int]]:
    """Indices into both lists of hashes that differ in at most so many bits."""
    pairs = []
    for i, one in enumerate(ours):
        bits = np.bitwise_count(theirs ^ one)
        pairs += [(i, int(j)) for j in np.flatnonzero(bits <= most_bits)]
    return pairs


def hashes_of_suites(folders: Sequence[Path]) -> tuple[Hashes, list[str]]:
    """Hashes and paths of all pictures of suites, seen and mirrored."""
    hashes, names = [], []
    for folder in folders:
        for record in load_suite(folder, check_images=False).records:
            with Image.open(record.path) as image:
                small = image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
            for shown in (small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                hashes.append(difference_hash(shown))
                names.append(str(record.path))
    return np.array(hashes, dtype=np.uint64), names


def main() -> None:
    """The command line; ends with 1 if a pair was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder of unpacked pictures")
    parser.add_argument("suites", type=Path, nargs="+")
    args = parser.parse_args()
    photos = np.load(args.cache / "photos.npy", mmap_mode="r")
    hashes = np.array([difference_hash(Image.fromarray(pixels)) for pixels in photos], dtype=np.uint64)
    theirs, names = hashes_of_suites(args.suites)
    pairs = find_pairs(theirs, hashes)
    for i, j in pairs:
        print(f"{names[i]} is like picture {j}")
    print(f"{len(pairs)} pairs within {MOST_BITS} bits; {len(names) // 2} against {len(hashes)} pictures")
    sys.exit(bool(pairs))


if __name__ == "__main__":
    main()
