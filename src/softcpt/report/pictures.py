"""Small copies of images that stand in a page itself."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from softcpt.data.image import open_image

LARGEST_PX = 192
"""Longer side of a copy: twice what a page shows, for fine screens."""


def data_uri(image: Path, largest_px: int = LARGEST_PX) -> str:
    """An image file as a small JPEG in a ``data:`` URI, upright and without what a camera wrote into it.

    Raises:
        ImageError: it cannot be read.
    """
    picture = open_image(image)
    picture.thumbnail((largest_px, largest_px))
    held = io.BytesIO()
    # Without the camera's notes (place, owner): the page may travel further than the image.
    picture.save(held, "JPEG", quality=88, subsampling=0, exif=b"", icc_profile=None)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")
