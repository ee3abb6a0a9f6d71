"""A built-in suite -> a folder in the ordinary layout, written whole or not at all."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from softcpt.builtin.digits import DIGITS
from softcpt.builtin.scenes import SCENES
from softcpt.builtin.suite import BuiltinSuite
from softcpt.core.errors import ConfigError, Fault, nearest
from softcpt.core.progress import OnProgress, Progress

SUITES: Final[dict[str, BuiltinSuite]] = {suite.name: suite for suite in (SCENES, DIGITS)}
"""Name -> suite."""

SIZES_PX: Final = (32, 1024)
"""Smallest and largest pictures that are made."""

_TELL_EVERY = 20


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        folder: of the suite.
        suite: its name.
        seed: of its pictures.
        classes: task -> number of classes.
        n_images: in all.
        size_px: height and width of a picture.
        digest: SHA-256 of the pixels of all pictures in order; the same on every machine.
    """

    folder: Path
    suite: str
    seed: int
    classes: dict[str, int]
    n_images: int
    size_px: int
    digest: str


def make_suite(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    images_per_class: int | None = None,
    size_px: int = 64,
    on_progress: OnProgress | None = None,
) -> Made:
    """Write a built-in suite: ``<task>/<class>/<number>.png`` and a ``suite.yaml`` that describes it.

    A picture depends on seed, task, class, number and size alone; in ``digits`` on the images per class too.
    The folder is there with all of it, or not at all.

    Args:
        name: one of ``SUITES``.
        folder: new or empty.
        seed: another one gives other pictures of the same kind.
        tasks: some of the suite's tasks; all by default, always in the suite's order.
        images_per_class: the suite's own number by default.
        size_px: height and width of a picture.
        on_progress: is told how far it has come.

    Raises:
        ConfigError: everything that cannot be, in one list.
    """
    suite = SUITES.get(name)
    if suite is None:
        unknown = Fault("suite", f'there is no built-in suite "{name}"', nearest(name, SUITES))
        raise ConfigError(unknown, about="the arguments")
    n = suite.images_per_class if images_per_class is None else images_per_class
    faults = [*_task_faults(suite, tasks), *_number_faults(suite, n, size_px), *_folder_faults(folder)]
    if faults:
        raise ConfigError(faults, about=f"the suite {name} to make")
    chosen = [task for task in suite.tasks if tasks is None or task in tasks]
    total = n * sum(len(suite.tasks[task].classes) for task in chosen)
    digest, done = hashlib.sha256(), 0
    with _whole_folder(folder) as part:
        for task in chosen:
            for value in suite.tasks[task].classes:
                inner = part / task / _folder_name(value)
                inner.mkdir(parents=True)
                for i, picture in enumerate(suite.pictures(task, value, seed, n, size_px)):
                    digest.update(picture.tobytes())
                    picture.save(inner / f"{i:03d}.png", compress_level=1)
                    done += 1
                    if on_progress and (done % _TELL_EVERY == 0 or done == total):
                        on_progress(Progress("pictures", done, total))
        _write_description(part / "suite.yaml", suite, chosen, seed)
    classes = {task: len(suite.tasks[task].classes) for task in chosen}
    return Made(folder, name, seed, classes, total, size_px, digest.hexdigest())


def _task_faults(suite: BuiltinSuite, tasks: Sequence[str] | None) -> Iterator[Fault]:
    for task in tasks or ():
        if task not in suite.tasks:
            yield Fault("tasks", f'{suite.name} has no task "{task}"', nearest(task, suite.tasks))
    if tasks is not None and not tasks:
        yield Fault("tasks", "none named", f"known: {', '.join(suite.tasks)}")


def _number_faults(suite: BuiltinSuite, images_per_class: int, size_px: int) -> Iterator[Fault]:
    if images_per_class < 1:
        yield Fault("images per class", f"{images_per_class} of them", "ask for at least 1")
    if suite.most_images is not None and images_per_class > suite.most_images:
        yield Fault(
            "images per class",
            f"{images_per_class} asked; {suite.name} has {suite.most_images} for each",
            f"ask for at most {suite.most_images}",
        )
    least, most = SIZES_PX
    if not least <= size_px <= most:
        yield Fault("size", f"{size_px} pixels", f"from {least} to {most}")


def _folder_faults(folder: Path) -> Iterator[Fault]:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        yield Fault(str(folder), "is not an empty folder", "name a new one")
    elif folder.resolve() == Path.cwd():
        # It is replaced as a whole, and whoever stands in it would be left in a folder that is gone.
        yield Fault(str(folder), "is the folder you are in", "name a new one inside it")


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` that takes its place in the end, or is removed."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
    part.mkdir()
    try:
        yield part
        if folder.is_dir():
            folder.rmdir()  # refused by the system if it is no longer empty
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _write_description(path: Path, suite: BuiltinSuite, chosen: Sequence[str], seed: int) -> None:
    content = {
        "name": suite.name,
        "description": suite.description,
        "source": f"{suite.source}; seed {seed}",
        "tasks": [
            {
                "name": name,
                "description": suite.tasks[name].description,
                "template": suite.tasks[name].template,
                "metric": "overall_acc",
                "classes": {_folder_name(v): label for v, label in suite.tasks[name].classes.items()},
            }
            for name in chosen
        ],
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def _folder_name(value: str) -> str:
    return value.replace(" ", "_")
