"""One seed -> named, independent random streams that are the same on every machine.

A stream is named by what it is for, so that asking for one more stream changes no other.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def stream_key(*parts: object) -> int:
    """A 128-bit number that is a function of the parts alone.

    Parts are JSON values (text, numbers, lists of them); their boundaries count:
    ``("a", "bc")`` and ``("ab", "c")`` differ.
    """
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def stream(*parts: object) -> np.random.Generator:
    """A NumPy generator (PCG64) for the named purpose.

    Example:
        >>> int(stream(1, "shots", "leaf").integers(100)) == int(stream(1, "shots", "leaf").integers(100))
        True
    """
    return np.random.Generator(np.random.PCG64(stream_key(*parts)))


def seed_for_torch(*parts: object) -> int:
    """A 63-bit seed for ``torch.Generator.manual_seed``, for the named purpose."""
    return stream_key(*parts) & (2**63 - 1)
