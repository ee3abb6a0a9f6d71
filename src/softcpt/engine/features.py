"""Image features of records: decoded, augmented and encoded when first asked for, then remembered.

The image encoder is frozen and a view is a function of (image, view number), so that a feature is computed
once and every epoch that meets the same view again finds it here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from os import cpu_count
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from softcpt.clip.backbone import Backbone
from softcpt.core.errors import Fault, SuiteError
from softcpt.data.image import centre_pixels, open_image, view_pixels
from softcpt.data.record import Record

Precision = Literal["fp32", "bf16", "fp16"]

CENTRE = -1
"""The view number of the unaugmented centre."""

IMAGES_AT_ONCE = 64


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
    """

    def __init__(self, backbone: Backbone, precision: Precision = "fp32") -> None:
        self.backbone = backbone
        self.precision: Precision = precision
        self._known: dict[tuple[str, int], Tensor] = {}

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
        keys = [(record.digest, view) for record, view in zip(records, views, strict=True)]
        wanted = {key: record for key, record in zip(keys, records, strict=True) if key not in self._known}
        items = list(wanted.items())
        faults: list[Fault] = []
        done = len(records) - len(items)
        with ThreadPoolExecutor(max_workers=cpu_count() or 1) as pool:
            for start in range(0, len(items), IMAGES_AT_ONCE):
                piece = items[start : start + IMAGES_AT_ONCE]
                pixels = list(pool.map(self._pixels, [r for _, r in piece], [k for k, _ in piece]))
                faults += [p for p in pixels if isinstance(p, Fault)]
                if not faults:
                    self._remember([key for key, _ in piece], [p for p in pixels if isinstance(p, Tensor)])
                done += len(piece)
                if on_done:
                    on_done(done)
        if faults:
            raise SuiteError(faults, about="the images")
        if not keys:
            return torch.zeros(0, self.backbone.embed_dim, device=self.backbone.device)
        return torch.stack([self._known[key] for key in keys]).to(self.backbone.device)

    def _pixels(self, record: Record, key: tuple[str, int]) -> Tensor | Fault:
        try:
            image = open_image(record.path)
        except SuiteError as error:
            return Fault(record.relative, error.faults[0].what, error.faults[0].fix)
        digest, view = key
        if view == CENTRE:
            return centre_pixels(image, self.backbone.pixels)
        return view_pixels(image, self.backbone.pixels, digest, view)

    def _remember(self, keys: Sequence[tuple[str, int]], pixels: Sequence[Tensor]) -> None:
        features = encode_pixels(self.backbone, torch.stack(list(pixels)), self.precision).cpu()
        self._known.update(zip(keys, features, strict=True))


def encode_pixels(
    backbone: Backbone, pixels: Float[Tensor, "n 3 S S"], precision: Precision
) -> Float[Tensor, "n D"]:
    """Image features, not normalised, fp32."""
    with torch.no_grad(), autocast(backbone.device, precision):
        return backbone.encode_images(pixels.to(backbone.device)).float()
