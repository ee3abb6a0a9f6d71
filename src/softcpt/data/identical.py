"""Which images are the same file under several names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from softcpt.core.errors import Fault, SuiteError
from softcpt.data.record import Record


def identical_files(records: Sequence[Record]) -> list[list[int]]:
    """Indices of images with the same bytes, one list per distinct content that occurs more than once.

    Only files of equal size are read. Empty files are left out: nothing in them is the same picture.

    Raises:
        SuiteError: an image is no longer there, or cannot be read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    by_digest: dict[str, list[int]] = defaultdict(list)
    try:
        for i, record in enumerate(records):
            by_size[record.path.stat().st_size].append(i)
        for size, indices in by_size.items():
            if size and len(indices) > 1:
                for i in indices:
                    by_digest[records[i].digest].append(i)
    except OSError as error:
        what = f"cannot be read any more: {error.strerror}"
        fault = Fault(str(error.filename), what, "put it back, or run the command again without it")
        raise SuiteError(fault, about="the suite") from error
    return sorted(indices for indices in by_digest.values() if len(indices) > 1)
