"""The backbones that the package itself carries, by their short names."""

from __future__ import annotations

from pathlib import Path

from softcpt.clip.folder import CONFIG

FOLDER = Path(__file__).parents[1] / "backbones"
"""A backbone folder for each name."""


def list_own() -> list[str]:
    """The names of the backbones that are installed with the package."""
    return sorted(file.parent.name for file in FOLDER.glob(f"*/{CONFIG}"))


def own_folder(name: str) -> Path | None:
    """Where such a backbone lies; None for other names."""
    return FOLDER / name if name in list_own() else None
