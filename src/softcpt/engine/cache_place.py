"""Where image features are kept on disk, and how much of it they may take: arguments and environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from softcpt.core.errors import ConfigError, Fault
from softcpt.engine.feature_cache import FeatureCache

CacheChoice = Path | str | bool | None
"""A folder; False for no cache; None or True for what the environment says, or else the user's folder."""

FOLDER = "SOFTCPT_CACHE"
LIMIT = "SOFTCPT_CACHE_LIMIT"
OFF = "off"
LIMIT_BYTES = 10_000_000_000
"""Some four million views of a ViT-B: more than all methods, shots and seeds of a large suite share."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def open_cache(choice: CacheChoice = None) -> AbstractContextManager[FeatureCache | None]:
    """The cache that is asked for, or None where there shall be none; nothing is written yet.

    Raises:
        ConfigError: the environment's limit is no size.
    """
    folder = cache_folder(choice)
    return nullcontext() if folder is None else FeatureCache(folder, limit_bytes())


def cache_folder(choice: CacheChoice = None) -> Path | None:
    """The cache's folder; None where there shall be no cache."""
    if choice is False:
        return None
    if choice is not None and choice is not True:
        return Path(choice).expanduser()
    said = os.environ.get(FOLDER, "").strip()
    if said.lower() == OFF:
        return None
    return Path(said).expanduser() if said else _user_folder(sys.platform, os.environ)


def limit_bytes() -> int:
    """The most the cache may take.

    Raises:
        ConfigError: the environment's limit is no size.
    """
    said = os.environ.get(LIMIT, "").strip()
    return parse_size(said, where=LIMIT) if said else LIMIT_BYTES


def parse_size(text: str, *, where: str) -> int:
    """Bytes.

    Args:
        text: such as ``500MB``, ``2 GB`` or ``1.5GB``.
        where: where it was given, for the fault.

    Raises:
        ConfigError: it is no size.

    Example:
        >>> parse_size("1.5 GB", where="--to")
        1500000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = found[2] if found else ""
    unit = unit if unit in _UNITS else f"{unit}B"
    if found is None or unit not in _UNITS:
        fault = Fault(where, f"{text!r} is no size", "write for example 500MB or 2GB")
        raise ConfigError(fault, about="the cache's settings")
    return int(float(found[1]) * _UNITS[unit])


def show_size(n_bytes: int) -> str:
    """Bytes for people.

    Example:
        >>> show_size(1_500_000)
        '1.5 MB'
    """
    unit = next(u for u in ("TB", "GB", "MB", "KB", "B") if n_bytes >= _UNITS[u] or u == "B")
    return f"{n_bytes} B" if unit == "B" else f"{n_bytes / _UNITS[unit]:.1f} {unit}"


def _user_folder(system: str, environment: Mapping[str, str]) -> Path | None:
    """``softcpt`` in the folder where a system's users keep what may be made again; None without a home."""
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if system == "darwin":
        return home / "Library" / "Caches" / "softcpt"
    if system == "win32":
        local = environment.get("LOCALAPPDATA")
        return (Path(local) if local else home / "AppData" / "Local") / "softcpt" / "Cache"
    given = Path(environment.get("XDG_CACHE_HOME") or "-")
    # The XDG rules ask to ignore a relative path.
    return (given if given.is_absolute() else home / ".cache") / "softcpt"
