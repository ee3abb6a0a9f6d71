"""The features a training goes through, on the device before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from jaxtyping import Float
from torch import Tensor

from softcpt.core.seeds import stream
from softcpt.data.record import Record
from softcpt.engine.features import CENTRE, ImageFeatures

WHOLE_BYTES = 4_000_000_000
"""The most that a training's features may take on the device; of more, those of one epoch are there."""


class ViewOrder:
    """Which view of an image each epoch uses: the run's seed permutes them, nothing else.

    With as many views as epochs every epoch meets a fresh crop, as when training on the fly; with fewer,
    each is met again once all have been used.
    """

    def __init__(self, records: Sequence[Record], n_views: int, seed: int) -> None:
        self.period = max(1, n_views)
        """Epochs after which every image shows the same view again."""
        self._orders = [
            stream("views", seed, record.digest).permutation(n_views) if n_views else np.array([CENTRE])
            for record in records
        ]

    def at(self, epoch: int, batch: Sequence[int] | np.ndarray) -> list[int]:
        """View numbers of a batch's images."""
        return [int(self._orders[i][epoch % self.period]) for i in batch]


class EpochFeatures:
    """Features of a pool's images, [n, D] or [n, 1 + r, D], in the view that each epoch shows.

    All views that the epochs will use are fetched here, so that no step waits for an image; a pool whose
    features are too large for the device is fetched epoch by epoch.

    Args:
        records: the pool's images.
        features: where theirs come from.
        order: which view an epoch uses.
        n_epochs: of the training.
        on_done: told how many features are there, and how many there will be.

    Raises:
        SuiteError: every image that cannot be read.
    """

    def __init__(
        self,
        records: Sequence[Record],
        features: ImageFeatures,
        order: ViewOrder,
        n_epochs: int,
        on_done: Callable[[int, int], None] | None = None,
    ) -> None:
        self._records, self._features, self._order, self._on_done = records, features, order, on_done
        n_slots = min(order.period, n_epochs)
        n_bytes = n_slots * len(records) * prod(features.shape) * 4
        self._slots: Float[Tensor, "V n *r D"] | None = None
        if n_bytes <= WHOLE_BYTES:
            self._slots = self._fetch(range(n_slots)).view(n_slots, len(records), *features.shape)
        self._fetched: tuple[int, Tensor] | None = None

    def at(self, epoch: int) -> Float[Tensor, "n *r D"]:
        """What the pool's images look like in an epoch, in the pool's order."""
        slot = epoch % self._order.period
        if self._slots is not None:
            return self._slots[slot]
        if self._fetched is None or self._fetched[0] != slot:
            self._fetched = None  # given up first, so that two never lie on the device
            self._fetched = (slot, self._fetch([slot]))
        return self._fetched[1]

    def _fetch(self, slots: Sequence[int]) -> Float[Tensor, "n *r D"]:
        n = len(self._records)
        views = [view for slot in slots for view in self._order.at(slot, range(n))]
        told = self._on_done
        on_done = None if told is None else (lambda done: told(done, len(views)))
        return self._features.views([*self._records] * len(slots), views, on_done)
