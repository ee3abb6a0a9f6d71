"""The folder of a comparison: cells and trials already there, one signed JSON file each.

compare.lock     empty; locked while a comparison is being written
cells/KEY.json   a training and what it scores on the test images
trials/KEY.json  a training that only helps to choose settings, and what it scores on val
work/            run folders while they are needed
results.json     everything, for programs; beside it results.csv, table.md, report.html and figures/
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from softcpt.core.errors import AdapterError, Fault, RunError
from softcpt.engine.signed import read_signed, write_signed

LOCK = "compare.lock"
CELLS, TRIALS, WORK = "cells", "trials", "work"
FEATURES = "features"
RESULTS, CSV, TABLE, REPORT, FIGURES = "results.json", "results.csv", "table.md", "report.html", "figures"
FILES = (LOCK, CELLS, TRIALS, WORK, FEATURES, RESULTS, CSV, TABLE, REPORT, FIGURES)

Kind = Literal["cells", "trials"]

logger = logging.getLogger("softcpt")


class Store:
    """Results by kind and key, in memory and in the folder; damaged ones count as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[Kind, str], dict[str, Any]] = {}
        self.damaged: list[str] = []

    def get(self, kind: Kind, key: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is kept under a key, or None.

        A file that was cut short, changed, or belongs to another cell is told of once and taken as missing.
        """
        if (kind, key) in self._known:
            return self._known[kind, key]
        path = self.path(kind, key)
        if not path.is_file():
            return None
        try:
            content = read_signed(path)
        except AdapterError as error:
            self._tell_damage(path, error.faults[0].what)
            return None
        if content.get("identity") != identity:
            self._tell_damage(path, "belongs to another cell")
            return None
        content.pop("format")
        self._known[kind, key] = content
        return content

    def put(self, kind: Kind, key: str, content: dict[str, Any]) -> None:
        """Keep a result, whole or not at all."""
        self.path(kind, key).parent.mkdir(exist_ok=True)
        write_signed(self.path(kind, key), content)
        self._known[kind, key] = content

    def path(self, kind: Kind, key: str) -> Path:
        """Where a result is kept."""
        return self.folder / kind / f"{key}.json"

    def _tell_damage(self, path: Path, what: str) -> None:
        name = path.relative_to(self.folder).as_posix()
        if name not in self.damaged:
            self.damaged.append(name)
            logger.warning("%s %s; it is computed again", name, what)


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store in a folder, ours alone while the block runs.

    Raises:
        RunError: the folder holds other things, cannot be written, or another comparison is writing to it.
    """
    if folder.exists() and not folder.is_dir():
        raise _refusal(folder, "is a file", "name a new folder")
    if folder.is_dir():
        content = sorted(entry.name for entry in folder.iterdir())
        strange = [name for name in content if name not in FILES and not name.endswith(".part")]
        if strange:
            named = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
            raise _refusal(folder, f"holds files that are not a comparison's: {named}", "name a new folder")
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise _refusal(folder, f"cannot be written: {error.strerror}", "name a folder of your own") from error
    with lock:
        if not _lock(lock.fileno()):
            raise _refusal(
                folder, "another comparison is being written to it", "wait, or name another folder"
            )
        for name in (CELLS, TRIALS):
            for part in (folder / name).glob(".*.part"):  # left by a killed comparison
                part.unlink(missing_ok=True)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        (folder / WORK).mkdir()
        ended = False
        try:
            yield Store(folder)
            ended = True  # even if all cells failed, the tables that say so come here
        finally:
            shutil.rmtree(folder / WORK, ignore_errors=True)
            nothing = [entry.name for entry in folder.iterdir()] == [LOCK]
            if is_new and nothing and not ended:  # stopped before anything was begun
                with suppress(OSError):
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # no such lock on this system: two comparisons in one folder are then not noticed
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _refusal(folder: Path, what: str, fix: str) -> RunError:
    return RunError(Fault(str(folder), what, fix), about="the comparison's folder")
