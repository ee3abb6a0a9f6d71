"""One rule from a picture file to a backbone's pixels, for training, prediction, serving and export.

EXIF orientation is applied; CMYK, palette, 16-bit and grey become RGB; alpha lies on white; of an
animation the first frame counts; the number of pixels is bounded; a truncated file is refused.
"""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from softcpt.core.errors import Fault, ImageError
from softcpt.core.pixels import PixelSpec
from softcpt.core.seeds import stream

MAX_PIXELS: int = (
    100_000_000  # a phone's largest pictures; 300 MB once decoded. Raise it if yours are larger.
)
MAX_BYTES: int = 500_000_000

# Pictures only. PIL would also run Ghostscript on EPS, or read icons, faxes and films.
FORMATS: Final = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

_Transpose = Image.Transpose
_TURNS: Final = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112
_INTERPOLATION: Final = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# What PIL's readers raise on broken files, beside OSError.
_BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
    ZeroDivisionError,
    struct.error,
)


def open_image(source: Path | bytes | Image.Image) -> Image.Image:
    """The picture in RGB, upright, decoded to its end.

    Args:
        source: a file, the bytes of one, or a picture that PIL has already opened.

    Raises:
        ImageError: not a picture of a known format, truncated, or too large.
    """
    with _pil_is_quiet():
        picture = source if isinstance(source, Image.Image) else _decoded(source)
        try:
            return _rgb(_upright(picture), source)
        except _BROKEN as error:
            raise _fault(source, f"cannot be turned into RGB: {error}", "save it as PNG or JPEG") from error


def check_image(source: Path | bytes) -> None:
    """Nothing, if the picture decodes to its end; quicker than :func:`open_image` for large JPEGs.

    Raises:
        ImageError: as :func:`open_image`.
    """
    with _pil_is_quiet():
        picture = _decoded(source, draft=True)
        if picture.mode in ("F", "I", "LAB"):
            _rgb(picture, source)


def centre_pixels(image: Image.Image, spec: PixelSpec) -> Float[Tensor, "3 S S"]:
    """The whole picture as the backbone's own evaluation would see it, normalised.

    The arithmetic of open_clip's evaluation transform, bit for bit.
    """
    size, resample = spec.size_px, _INTERPOLATION[spec.interpolation]
    width, height = image.size
    if spec.resize == "squash":
        image = image.resize((size, size), resample)
    elif spec.resize == "shortest":
        short = min(width, height)
        if max(width, height) * size**2 > short * MAX_PIXELS:
            # A hair-thin picture would swell beyond memory; most of it would be cut off again.
            image = image.crop(_central_box(width, height, 4 * short))
            width, height = image.size
        # int, not round: as torchvision computes the longer side
        scaled = (int(size * width / short), int(size * height / short))
        image = _centre(image.resize(scaled, resample), size, spec.fill)
    else:
        ratio = max(height / size, width / size)
        image = image.resize((max(1, round(width / ratio)), max(1, round(height / ratio))), resample)
        image = _centre(image, size, spec.fill)
    return _normalised(image, spec)


def mirror_pixels(image: Image.Image, spec: PixelSpec) -> Float[Tensor, "3 S S"]:
    """The mirror image of :func:`centre_pixels`."""
    return centre_pixels(image, spec).flip(2)


def view_pixels(image: Image.Image, spec: PixelSpec, digest: str, view: int) -> Float[Tensor, "3 S S"]:
    """View ``view`` of a picture: a random resized crop and flip that depend on (digest, view) alone.

    Args:
        image: as :func:`open_image` gives it.
        spec: size, interpolation and normalisation of the backbone.
        digest: of the file's bytes.
        view: its number, from 0.
    """
    rng = stream("view", digest, view)
    flip = rng.random() < 0.5
    image = image.crop(_crop_box(*image.size, rng))
    image = image.resize((spec.size_px, spec.size_px), _INTERPOLATION[spec.interpolation])
    if flip:
        image = image.transpose(_Transpose.FLIP_LEFT_RIGHT)
    return _normalised(image, spec)


def _crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of a crop with a share of the area in ``scale``; torchvision's rule."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    # Very long pictures: the largest central crop of an allowed ratio.
    if width < height:
        return _central_box(width, height, max(1, round(width / ratio[0])))
    return _central_box(width, height, max(1, round(height * ratio[1])))


def _central_box(width: int, height: int, longest: int) -> tuple[int, int, int, int]:
    w, h = min(width, longest), min(height, longest)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _centre(image: Image.Image, size: int, fill: int) -> Image.Image:
    """The central square, padded with grey where the picture is smaller."""
    width, height = image.size
    if width < size or height < size:
        left, upper = max(0, (size - width) // 2), max(0, (size - height) // 2)
        padded = Image.new("RGB", (max(size, width), max(size, height)), (fill, fill, fill))
        padded.paste(image, (left, upper))
        image, (width, height) = padded, padded.size
    # round, halves to even: as torchvision cuts
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, upper, left + size, upper + size))


def _normalised(image: Image.Image, spec: PixelSpec) -> Float[Tensor, "3 S S"]:
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
    mean = torch.tensor(spec.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(spec.std, dtype=torch.float32)[:, None, None]
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


@cache
def _formats() -> list[str]:
    """Those of :data:`FORMATS` that this build of PIL has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decoded(source: Path | bytes, *, draft: bool = False) -> Image.Image:
    """The first frame, decoded to its end, as it is stored."""
    content = source if isinstance(source, bytes) else _read(source)
    if not content:
        raise _fault(source, "an empty file", "replace or remove it")
    try:
        picture = Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        raise _fault(source, "not a picture of a known format", f"known: {', '.join(_formats())}") from None
    except Image.DecompressionBombError:
        raise _fault(source, f"more than {MAX_PIXELS:,} pixels", "make it smaller") from None
    except _BROKEN as error:
        raise _fault(source, f"broken: {error}", "replace or remove it") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _fault(source, f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "make it smaller")
    try:
        if draft:
            # All coefficients are still read, so a truncated file still shows.
            picture.draft("RGB", (1, 1))
        picture.load()
    except _BROKEN as error:
        raise _fault(source, f"broken: {error}", "replace or remove it") from error
    if picture.format == "PNG" and b"IEND" not in content:
        raise _fault(source, "broken: truncated after its last row", "replace or remove it")
    return picture


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise _fault(path, f"{size:,} bytes, more than {MAX_BYTES:,}", "make it smaller")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no path could be called so
        why = getattr(error, "strerror", None) or str(error)
        raise _fault(path, f"cannot be read: {why}", "check the path and its permissions") from None


def _upright(picture: Image.Image) -> Image.Image:
    # TIFF pictures are turned by PIL itself, which then drops the mark.
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except _BROKEN:
        return picture  # a broken mark says nothing about the pixels
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image, source: Path | bytes | Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        low, high = picture.getextrema()
        if not isinstance(low, int | float) or low < 0 or not isinstance(high, int | float) or high > 65535:
            raise _fault(source, "32-bit pixels without a known range", "save it with 8 or 16 bits")
        # The upper byte, as PIL reads 16-bit colour pictures.
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("F", "LAB"):
        kind = "floating-point" if picture.mode == "F" else "LAB"
        raise _fault(source, f"{kind} pixels without a known range", "save it as 8-bit RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _fault(source: Path | bytes | Image.Image, what: str, fix: str) -> ImageError:
    where = str(source) if isinstance(source, Path) else "the given picture"
    return ImageError(Fault(where, what, fix), about="an image")


_quiet = threading.Lock()
_quiet_depth = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def _pil_is_quiet() -> Iterator[None]:
    """PIL's warnings about odd metadata are kept in.

    ``warnings.catch_warnings`` alone does not nest across threads: whoever leaves last would restore
    another thread's filters. So the first thread in sets the filter and the last one out takes it away.
    """
    global _quiet_depth, _quiet_filters
    with _quiet:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None
