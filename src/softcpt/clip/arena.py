"""Memory that is used again."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


class Arena:
    """Memory that is taken piece by piece and given back at once: fresh pages are dear."""

    PIECE = 1 << 18  # the first slab's elements; later ones double what is there, up to LARGEST
    LARGEST = 1 << 25

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slabs: dict[torch.dtype, list[Tensor]] = {}
        self._at: dict[torch.dtype, tuple[int, int]] = {}

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor with any content."""
        size = prod(shape)
        slabs = self._slabs.setdefault(dtype, [])
        slab, used = self._at.get(dtype, (0, 0))
        while slab < len(slabs) and used + size > slabs[slab].numel():
            slab, used = slab + 1, 0
        if slab == len(slabs):
            with torch.inference_mode(False):
                slabs.append(torch.empty(max(size, self._next_size(slabs)), dtype=dtype, device=self.device))
        # Pieces begin at multiples of 16 elements.
        self._at[dtype] = (slab, used + -(-size // 16) * 16)
        return slabs[slab][used : used + size].view(shape)

    def _next_size(self, slabs: list[Tensor]) -> int:
        return max(self.PIECE, min(sum(slab.numel() for slab in slabs), self.LARGEST))

    def mark(self) -> dict[torch.dtype, tuple[int, int]]:
        """Where we are."""
        return dict(self._at)

    def rewind(self, mark: dict[torch.dtype, tuple[int, int]]) -> None:
        """Give back what was taken since the mark."""
        self._at = dict(mark)

    def reset(self) -> None:
        """Give back everything."""
        self._at = {}

    @property
    def n_bytes(self) -> int:
        """All memory it has."""
        return sum(slab.nbytes for slabs in self._slabs.values() for slab in slabs)

    def fill(self, value: float) -> None:
        """Overwrite all memory."""
        for slabs in self._slabs.values():
            for slab in slabs:
                slab.fill_(value)
