"""What a user names on the command line -> the images meant: files, folders, and standard input."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

STDIN = "-"

# How files of the formats that people pipe begin. Enough to tell a picture from a list of paths.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6")
_MAGIC_BYTES = 12  # a WebP's name stands behind its size


@dataclass(frozen=True, slots=True)
class Named:
    """An image to look at, or the reason why there is none.

    Attributes:
        name: how results call it.
        content: its file, or its bytes where it came through standard input; None with a fault.
        fault: why nothing can be read under that name, or None.
    """

    name: str
    content: Path | bytes | None
    fault: str | None = None


def find_images(names: Sequence[str], *, suffixes: Iterable[str], stdin: BinaryIO) -> Iterator[Named]:
    """The images of all names, in the order given; folders are searched recursively, sorted by path.

    Args:
        names: files, folders, or ``-``: the bytes of one image, or one path per line, read as they come.
        suffixes: lower-case endings of the files that count in a folder; a file named itself always does.
        stdin: where ``-`` reads.
    """
    endings = frozenset(suffixes)
    for name in names:
        if name == STDIN:
            yield from _from_stdin(stdin, endings)
        else:
            yield from _from_path(name, endings)


def _from_path(name: str, suffixes: frozenset[str]) -> Iterator[Named]:
    path = Path(name)
    if not path.is_dir():
        yield Named(name, path)  # whether it exists and can be read is found by whoever opens it
        return
    images = sorted(_walk(path, suffixes))
    if not images:
        yield Named(name, None, "no images in this folder")
    for image in images:
        yield Named(str(image), image)


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(top, name)


def _from_stdin(stdin: BinaryIO, suffixes: frozenset[str]) -> Iterator[Named]:
    start = stdin.read(_MAGIC_BYTES)
    if _is_image(start):
        yield Named(STDIN, start + stdin.read())
        return
    first = (start + stdin.readline()).split(b"\n")
    for line in chain(first, stdin):
        name = os.fsdecode(line).rstrip("\r\n")
        if name:
            yield from _from_path(name, suffixes)


def _is_image(start: bytes) -> bool:
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
