"""Image features of records: from memory, from disk, or else decoded, augmented and encoded.

The image encoder is frozen and a view is a function of (image, view number), so that a feature is computed
once: every epoch, method, shot count and seed that meets the same view finds it again. Where it was found
must not show, so every image is encoded in a batch of one fixed shape (see :data:`ENCODED_AT_ONCE`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from os import cpu_count
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from softcpt.clip.backbone import Backbone
from softcpt.core.errors import Fault, SuiteError
from softcpt.core.pixels import PixelSpec
from softcpt.data.image import centre_pixels, mirror_pixels, open_image, view_pixels
from softcpt.data.record import Record
from softcpt.engine.encoder_key import encoder_key
from softcpt.engine.feature_cache import FeatureCache, Key

Precision = Literal["fp32", "bf16", "fp16"]

CENTRE = -1
"""The view number of the unaugmented centre."""

MIRROR = -2
"""That of its mirror image."""

IMAGES_AT_ONCE = 64
"""Views decoded as one piece, and what a killed process loses at most."""

PIECES_AHEAD = 2
"""Pieces decoded while another one is encoded; the pixels of one take 40 MB at 224 px."""

VIEWS_PER_DECODING = 8
"""Views cut from a picture by one thread: fewer decodings, and still enough threads at work."""

ENCODED_AT_ONCE = {"cpu": 16}
"""The batch an encoder sees, by type of device, always full: blank pictures make up for what is missing.

Libraries choose their algorithms, and with them the order of additions, by shape. In a batch of one shape a
picture's feature is the same to the last bit whatever its place and neighbours; between shapes it is not.
A CPU is as quick with 16 as with more, and little is wasted on a few images."""

_ENCODED_AT_ONCE = 64


def autocast(device: torch.device, precision: Precision) -> torch.autocast | nullcontext[None]:
    """The context in which encoders run at a precision; learned tensors stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class ImageFeatures:
    """Features [n, D] of records, not normalised, fp32, on the backbone's device.

    Args:
        backbone: whose image encoder.
        precision: the encoder's.
        cache: where features are kept beyond this process, if anywhere.
    """

    def __init__(
        self, backbone: Backbone, precision: Precision = "fp32", cache: FeatureCache | None = None
    ) -> None:
        self.backbone = backbone
        self.precision: Precision = precision
        self._cache = cache
        self._encoder = encoder_key(backbone, precision) if cache else None
        self._known: dict[Key, Tensor] = {}

    def centres(
        self, records: Sequence[Record], on_done: Callable[[int], None] | None = None
    ) -> Float[Tensor, "n D"]:
        """Features of the unaugmented centres.

        Args:
            records: the images.
            on_done: told how many are done, after each piece.
        """
        return self.views(records, [CENTRE] * len(records), on_done)

    def views(
        self,
        records: Sequence[Record],
        views: Sequence[int],
        on_done: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "n D"]:
        """Features of one view of each record.

        Raises:
            SuiteError: every image that cannot be read.
        """
        # Each file is looked at once, however many of its views are asked for.
        digests = {number: record.digest for number, record in {id(r): r for r in records}.items()}
        keys = [(digests[id(record)], view) for record, view in zip(records, views, strict=True)]
        missing = {key: record for key, record in zip(keys, records, strict=True) if key not in self._known}
        if missing:
            self._recall(list(missing))
            missing = {key: record for key, record in missing.items() if key not in self._known}
            n_done = len(records) - len(missing)
            if on_done:
                on_done(n_done)
            if missing:
                self._compute(missing, n_done, on_done)
        if not keys:
            return torch.zeros(0, self.backbone.embed_dim, device=self.backbone.device)
        return torch.stack([self._known[key] for key in keys]).to(self.backbone.device)

    def _compute(
        self, missing: dict[Key, Record], n_done: int, on_done: Callable[[int], None] | None
    ) -> None:
        faults: dict[Fault, None] = {}  # a set in order: a picture is looked at once for several views
        with ThreadPoolExecutor(max_workers=cpu_count() or 1) as pool:
            for piece in _ahead(pool, self._decode, _pieces(missing)):
                decoded = [future.result() for future in piece]
                n_done += sum(result.n_views for result in decoded)
                faults |= {result.fault: None for result in decoded if result.fault}
                if not faults:
                    self._remember({key: p for result in decoded for key, p in result.pixels.items()})
                if on_done:
                    on_done(n_done)
        if faults:
            raise SuiteError(list(faults), about="the images")

    def _decode(self, job: _Job) -> _Decoded:
        try:
            image = open_image(job.record.path)
        except SuiteError as error:
            fault = Fault(job.record.relative, error.faults[0].what, error.faults[0].fix)
            return _Decoded(len(job.keys), {}, fault)
        spec = self.backbone.pixels
        return _Decoded(
            len(job.keys),
            {(digest, view): _pixels(image, spec, digest, view) for digest, view in job.keys},
        )

    def _recall(self, keys: Sequence[Key]) -> None:
        """Take what the disk has into memory."""
        if self._cache is None or self._encoder is None:
            return
        found = self._cache.get(self._encoder, keys)
        if not found:
            return
        numbers = np.frombuffer(b"".join(found.values()), dtype="<f4").astype(np.float32)
        features = torch.from_numpy(numbers).view(len(found), -1)
        good = features.isfinite().all(1).tolist()
        rows = list(zip(found, features, good, strict=True))
        self._known.update({key: row for key, row, is_good in rows if is_good})
        self._cache.drop(self._encoder, [key for key, _, is_good in rows if not is_good])

    def _remember(self, pixels: dict[Key, Float[Tensor, "3 S S"]]) -> None:
        features = encode_alike(self.backbone, torch.stack(list(pixels.values())), self.precision).cpu()
        self._known.update(zip(pixels, features, strict=True))
        if self._cache is not None and self._encoder is not None:
            numbers = features.numpy().astype("<f4")
            good = features.isfinite().all(1).tolist()  # an encoder that overflows is asked again next time
            rows = zip(pixels, numbers, good, strict=True)
            self._cache.put(self._encoder, {key: row.tobytes() for key, row, is_good in rows if is_good})


@dataclass(frozen=True)
class _Job:
    """Views to be cut from one picture, which is decoded once for them."""

    record: Record
    keys: Sequence[Key]


@dataclass(frozen=True)
class _Decoded:
    """The pixels of a job's views, or what is wrong with its picture."""

    n_views: int
    pixels: dict[Key, Tensor]
    fault: Fault | None = None


def _pixels(image: Image, spec: PixelSpec, digest: str, view: int) -> Float[Tensor, "3 S S"]:
    if view == CENTRE:
        return centre_pixels(image, spec)
    if view == MIRROR:
        return mirror_pixels(image, spec)
    return view_pixels(image, spec, digest, view)


def _pieces(wanted: dict[Key, Record]) -> Iterator[list[_Job]]:
    """Jobs of about :data:`IMAGES_AT_ONCE` views together; the views of a picture follow one another."""
    of_image: dict[str, list[Key]] = {}
    for key in wanted:
        of_image.setdefault(key[0], []).append(key)
    jobs = (
        _Job(wanted[keys[0]], keys[i : i + VIEWS_PER_DECODING])
        for keys in of_image.values()
        for i in range(0, len(keys), VIEWS_PER_DECODING)
    )
    piece: list[_Job] = []
    n_views = 0
    for job in jobs:
        if n_views + len(job.keys) > IMAGES_AT_ONCE:
            yield piece
            piece, n_views = [], 0
        piece.append(job)
        n_views += len(job.keys)
    if piece:
        yield piece


def _ahead(
    pool: ThreadPoolExecutor, decode: Callable[[_Job], _Decoded], pieces: Iterator[list[_Job]]
) -> Iterator[list[Future[_Decoded]]]:
    """The pieces in order, each handed out when the next ones are already being decoded."""
    waiting: deque[list[Future[_Decoded]]] = deque()
    for piece in pieces:
        waiting.append([pool.submit(decode, job) for job in piece])
        if len(waiting) > PIECES_AHEAD:
            yield waiting.popleft()
    yield from waiting


def encode_pixels(
    backbone: Backbone, pixels: Float[Tensor, "n 3 S S"], precision: Precision
) -> Float[Tensor, "n D"]:
    """Image features, not normalised, fp32."""
    with torch.no_grad(), autocast(backbone.device, precision):
        return backbone.encode_images(pixels.to(backbone.device)).float()


def encode_alike(
    backbone: Backbone, pixels: Float[Tensor, "n 3 S S"], precision: Precision
) -> Float[Tensor, "n D"]:
    """As :func:`encode_pixels`, in full batches of one shape: no image's feature depends on the others."""
    size = ENCODED_AT_ONCE.get(backbone.device.type, _ENCODED_AT_ONCE)
    missing = -len(pixels) % size
    whole = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])]) if missing else pixels
    features = [encode_pixels(backbone, batch, precision) for batch in torch.split(whole, size)]
    return torch.cat(features)[: len(pixels)]
