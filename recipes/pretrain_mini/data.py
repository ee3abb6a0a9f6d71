"""The captioned photographs on disk -> one array of pixels and their captions.

A corpus is a folder with ``captions.tsv`` (a header line, then: file, shard, source, captions separated by
``|``) and the shards it names: tar.gz files of small pictures.
"""

from __future__ import annotations

import io
import os
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE_PX = 64
# A shard unpacks to some 5,000 pictures of 2 kB; what is much larger is no shard.
_MAX_PICTURE_BYTES = 1 << 20


class Photos(NamedTuple):
    """A corpus in memory.

    Attributes:
        pixels: [N, 64, 64, 3], mapped from the disk.
        source: of each picture, the short name of where it comes from.
        captions: of each picture.
        usable: indices of the pictures that may be trained on.
    """

    pixels: NDArray[np.uint8]
    source: list[str]
    captions: list[list[str]]
    usable: NDArray[np.int64]


def read_photos(corpus: Path, cache: Path) -> Photos:
    """All pictures of a corpus; unpacked into ``cache`` the first time."""
    rows = _rows(corpus)
    file = cache / "photos.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _unpack(corpus, {name: i for i, (name, *_) in enumerate(rows)}, file)
    pixels = np.load(file, mmap_mode="r")
    if len(pixels) != len(rows):
        raise ValueError(
            f"{file} holds {len(pixels)} pictures and {corpus} names {len(rows)}: delete the file"
        )
    usable = np.array([i for i, row in enumerate(rows) if row[0] not in left_out()])
    return Photos(pixels, [row[2] for row in rows], [row[3].split("|") for row in rows], usable)


@lru_cache
def left_out() -> frozenset[str]:
    """Files of the corpus that are also in an evaluation suite."""
    lines = Path(__file__).with_name("left_out.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def read_captions(corpus: Path) -> list[list[str]]:
    """The captions of each picture of a corpus."""
    return [row[3].split("|") for row in _rows(corpus)]


def _rows(corpus: Path) -> list[list[str]]:
    return [line.split("\t") for line in (corpus / "captions.tsv").read_text("utf-8").splitlines()[1:]]


def _unpack(corpus: Path, row_of: dict[str, int], file: Path) -> None:
    part = file.with_suffix(".part")
    pixels = np.lib.format.open_memmap(
        part, mode="w+", dtype=np.uint8, shape=(len(row_of), SIZE_PX, SIZE_PX, 3)
    )
    missing = set(row_of)
    for shard in sorted(corpus.glob("*.tar.gz")):
        # Nothing is written under a member's name: a picture is read in memory or not at all.
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.isfile() and member.name in missing and member.size <= _MAX_PICTURE_BYTES:
                    content = archive.extractfile(member)
                    assert content is not None  # a plain file
                    pixels[row_of[member.name]] = decode(content.read())
                    missing.remove(member.name)
    if missing:
        raise ValueError(f"{len(missing)} pictures are in no shard, among them {min(missing)}")
    pixels.flush()
    del pixels
    os.replace(part, file)  # noqa: PTH105  # atomic on every system


def decode(content: bytes) -> NDArray[np.uint8]:
    """A picture's pixels, [64, 64, 3]."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))
