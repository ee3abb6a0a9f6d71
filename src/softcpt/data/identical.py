"""Which images are the same file under several names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from softcpt.data.record import Record


def identical_files(records: Sequence[Record]) -> list[list[int]]:
    """Indices of images with the same bytes, one list per distinct content that occurs more than once.

    Only files of equal size are read. Empty files are left out: nothing in them is the same picture.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        by_size[record.path.stat().st_size].append(i)
    by_digest: dict[str, list[int]] = defaultdict(list)
    for size, indices in by_size.items():
        if size and len(indices) > 1:
            for i in indices:
                by_digest[records[i].digest].append(i)
    return sorted(indices for indices in by_digest.values() if len(indices) > 1)
