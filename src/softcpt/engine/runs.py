"""Run folders.

config.json           resolved settings, each with its origin; ``--config`` takes it to repeat the run
split.json            the suite it was trained on, and the test images that were kept away from it
metrics.jsonl         one line a step: loss, learning rate in force, time; val scores where they choose
run.lock              empty; locked while the run is being written
log.txt               what was said
adapter.safetensors   what was learned
adapter.json          all that belongs to it
result.json           written last and whole; a run without it is not done
"""

from __future__ import annotations

import glob
import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from softcpt.core.errors import Fault, RunError
from softcpt.core.files import digest_of_file, digest_of_json, lock_file, to_json, write_whole
from softcpt.engine.adapter import FACTS, WEIGHTS, Adapter, read_adapter
from softcpt.engine.loop import Step, ValScore
from softcpt.engine.signed import FORMAT, read_signed

CONFIG = "config.json"
SPLIT = "split.json"
METRICS = "metrics.jsonl"
LOG = "log.txt"
RESULT = "result.json"
LOCK = "run.lock"
NEW = ".new"
"""Ending of the hidden folder in which a run that replaces another is written."""
FILES = (RESULT, CONFIG, SPLIT, METRICS, LOG, WEIGHTS, FACTS, LOCK)

logger = logging.getLogger("softcpt")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        adapter: what was learned.
        split: where its suite was, and its test images.
        result: what it reported when it ended.
    """

    path: Path
    adapter: Adapter
    split: dict[str, Any]
    result: dict[str, Any]


def open_run(path: Path | str) -> Run:
    """A finished run's files, checked.

    Raises:
        RunError: there is no finished run.
        AdapterError: its files were changed or do not belong together.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise _refusal(
            folder, "there is no such folder", "name the folder that softcpt train wrote (--output)"
        )
    if not (folder / RESULT).is_file():
        if (folder / CONFIG).is_file():
            raise _refusal(folder, "the run was not finished", "train it again with --overwrite")
        raise _refusal(folder, "holds no run", "name the folder that softcpt train wrote (--output)")
    result = read_signed(folder / RESULT)
    adapter = read_adapter(folder)
    split = read_signed(folder / SPLIT)
    for name, content in ((FACTS, adapter.facts), (SPLIT, split)):
        if result["digests"][name] != digest_of_json(content):
            raise _refusal(
                folder / name, "belongs to another run than result.json", "restore it, or train again"
            )
    config = folder / CONFIG
    if not config.is_file() or digest_of_file(config) != result["digests"][CONFIG]:
        raise _refusal(config, "is missing or was edited after the run", "restore it, or train again")
    return Run(folder, adapter, split, result)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a run must not be written to; nothing is changed yet.

    Raises:
        RunError: it holds another run and ``overwrite`` is not set, holds other things, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise _refusal(folder, "is a file", "name a new folder")
    if not folder.is_dir():
        return
    content = {entry.name for entry in folder.iterdir()}
    strange = sorted(name for name in content if name not in FILES and not _is_part(name))
    if strange:
        named = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise _refusal(folder, f"holds files that are not a run's: {named}", "name a new folder")
    if not overwrite and content - {LOCK}:
        state = "a finished run" if RESULT in content else "an unfinished run"
        raise _refusal(folder, f"holds {state}", "name another folder, or add --overwrite to replace it")


@contextmanager
def open_output(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write a run to, ours alone while the block runs.

    It is ``folder`` itself, unless that holds a finished run: then it is a hidden one beside it, whose files
    take the old run's place when the block has ended well. What stops the block leaves the old run whole.

    Raises:
        RunError: as :func:`check_output`, or another process is writing to it.
    """
    check_output(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    except OSError as error:
        raise _refusal(folder, f"cannot be written: {error.strerror}", "name a folder of your own") from error
    with lock:
        if not lock_file(lock.fileno()):
            raise _refusal(folder, "another run is being written to it", "wait, or name another folder")
        check_output(folder, overwrite=overwrite)  # again: another run may have ended in between
        for left in folder.parent.glob(f".{glob.escape(folder.name)}.*{NEW}"):  # by a killed run
            shutil.rmtree(left, ignore_errors=True)
        if not (folder / RESULT).is_file():
            _clear(folder)
            with _logging_to(folder):
                yield folder
        else:
            new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=NEW, dir=folder.parent))
            try:
                with _logging_to(new):
                    yield new
                _clear(folder)
                for name in reversed(FILES):  # the result last
                    if (new / name).exists():
                        (new / name).replace(folder / name)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        # The lock file stays: removing it while another process opens it would let two in.


def _clear(folder: Path) -> None:
    """Remove a run's files, its result first."""
    for name in FILES:
        if name != LOCK:
            (folder / name).unlink(missing_ok=True)
    for part in folder.glob(".*.part"):  # left by a killed run
        part.unlink(missing_ok=True)


@contextmanager
def _logging_to(folder: Path) -> Iterator[None]:
    handler = logging.FileHandler(folder / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        logger.error("stopped: %s", str(error) or type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _is_part(name: str) -> bool:
    """Whether a file is one that a killed run was writing (see :mod:`softcpt.core.files`)."""
    return name.endswith(".part") and name.startswith(tuple(f".{file}." for file in FILES))


def write_config(folder: Path, settings: dict[str, Any]) -> None:
    """The resolved settings, in a form that ``--config`` reads again."""
    write_whole(folder / CONFIG, to_json({"format": FORMAT, "settings": settings}))


class MetricsFile:
    """Appends one JSON line a step."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / METRICS).open("w", encoding="utf-8", buffering=1)  # whole lines, at once

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, line: Step | ValScore) -> None:
        """One line."""
        self._file.write(json.dumps(vars(line), ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("softcpt", "torch", "torchvision", "open_clip_torch", "numpy", "pillow"):
        with suppress(PackageNotFoundError):  # run from a source tree without its metadata
            found[package] = version(package)
    return found


def _refusal(folder: Path, what: str, fix: str) -> RunError:
    return RunError(Fault(str(folder), what, fix), about="the run folder")
