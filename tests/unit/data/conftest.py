"""Small suites on disk, each picture different from all others unless asked otherwise."""

from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image


def png(seed: object) -> bytes:
    """A picture of 8 x 8 pixels that is a function of the seed."""
    colours = hashlib.sha256(str(seed).encode()).digest()
    picture = Image.frombytes("RGB", (2, 2), colours[:12]).resize((8, 8), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    """Write files below a fresh folder: text, bytes, or None for a picture of its own."""

    def put_files(files, root="suite"):
        folder = tmp_path / root
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                content = png(path)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return put_files


def class_files(*classes, n=3, suffix=".png"):
    """``<class>/<i>.png`` for each class, each a picture of its own."""
    return {f"{name}/{i}{suffix}": None for name in classes for i in range(n)}


@pytest.fixture
def good():
    """Two tasks of two classes, three images each."""
    return class_files("leaf/rust", "leaf/scab", "fruit/apple", "fruit/pear")


@pytest.fixture
def files_of():
    return class_files
