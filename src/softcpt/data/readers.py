"""Folders -> the images they hold, by task, class and part; what a manifest gives lies in ``manifest.py``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from softcpt.core.errors import Fault, nearest
from softcpt.core.names import normalise_name
from softcpt.data.record import Part
from softcpt.data.suite_file import SUITE_FILE, SuiteFile

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
PART_WORDS: Final[dict[str, Part]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Left behind by operating systems and archivers; what starts with a dot is hidden anyway.
_CLUTTER: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


@dataclass(frozen=True, slots=True)
class Found:
    """One image as the source names it.

    Attributes:
        path: the file.
        relative: its path in the suite's folder, with ``/``.
        task: the task's name, normalised.
        folder: the class's folder name, normalised; readable names come from ``suite.yaml``.
        part: the part the source gives it, or None.
        group: images of one group stay in one part, or None.
        place: where the source says so, for faults.
    """

    path: Path
    relative: str
    task: str
    folder: str
    part: Part | None
    group: str | None
    place: str


@dataclass(slots=True)
class Listing:
    """What a source holds, before ``suite.yaml`` orders and names it.

    Attributes:
        classes: task -> class folders, sorted, those without images included.
        images: every image.
        faults: everything that is wrong so far.
        notes: things a reader of results should know.
        left_aside: folders that ``suite.yaml`` does not name.
        flat: task folders with images in place of class folders.
    """

    classes: dict[str, set[str]] = field(default_factory=dict)
    images: list[Found] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_aside: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)

    def leave_aside(self, folder: str) -> None:
        """Pass over a folder that ``suite.yaml`` does not name: a way to choose tasks and classes."""
        self.notes.append(f"{folder}: a folder that {SUITE_FILE} does not name, left aside")
        self.left_aside.append(folder)


def list_folders(root: Path, described: SuiteFile | None) -> Listing:
    """The images of ``<task>/<class>/<image>``, or with the parts train, val and test as a folder level.

    Links are followed, as the folders are the user's own. Parts may stand above the tasks
    (``train/<task>/<class>``) or below (``<task>/train/<class>``).
    """
    listing = Listing()
    tops, loose = _visible(root, listing)
    named = {task.name for task in described.tasks or ()} if described else set()
    for image in (file for file in loose if _is_image(file)):
        listing.notes.append(f"{image.name}: an image outside every class folder, left aside")
    if _are_parts(tops) and not named.issuperset(normalise_name(top.name) for top in tops):
        for top in tops:
            for task in _visible(top, listing)[0]:
                _list_task(task, root, PART_WORDS[top.name.casefold()], described, listing)
    else:
        for task in tops:
            if named and normalise_name(task.name) not in named:
                listing.leave_aside(_relative(task, root))
            else:
                _list_task(task, root, None, described, listing)
    return _explained(listing, root)


def _list_task(
    task: Path, root: Path, part: Part | None, described: SuiteFile | None, listing: Listing
) -> None:
    name = _name_of(task, root, listing)
    folders, loose = _visible(task, listing)
    entry = described.task_named(name) if described else None
    wanted = entry.readable_names() if entry else None
    if images := [file for file in loose if _is_image(file)]:
        listing.notes.append(
            f"{_relative(task, root)}: {_count(len(images), 'image')} outside every class folder, left aside"
        )
        if not folders:
            listing.flat.append(_relative(task, root))
    listing.classes.setdefault(name, set())
    if part is None and _are_parts(folders) and not (wanted and folders[0].name in wanted):
        for folder in folders:
            for inner in _visible(folder, listing)[0]:
                _list_class(inner, root, name, PART_WORDS[folder.name.casefold()], wanted, listing)
    else:
        for folder in folders:
            _list_class(folder, root, name, part, wanted, listing)


def _list_class(
    folder: Path, root: Path, task: str, part: Part | None, wanted: dict[str, str] | None, listing: Listing
) -> None:
    name = _name_of(folder, root, listing)
    place = _relative(folder, root)
    if wanted is not None and name not in wanted:
        listing.leave_aside(place)
        return
    inner, files = _visible(folder, listing)
    for nested in inner:
        listing.faults.append(
            Fault(_relative(nested, root), "a folder inside a class folder", "move its images up, or it away")
        )
    listing.classes[task].add(name)
    images = [file for file in files if _is_image(file)]
    for path in images:
        relative = _relative(path, root)
        if not _is_text(relative):
            listing.faults.append(Fault(ascii(relative), "a file name that is not UTF-8", "rename the file"))
        elif not path.exists():
            listing.faults.append(
                Fault(relative, "a link to a file that does not exist", "remove or mend it")
            )
        else:
            listing.images.append(Found(path, relative, task, name, part, None, relative))
    if others := [file.name for file in files if not _is_image(file)]:
        listing.notes.append(
            f"{place}: {_count(len(others), 'file')} without an image suffix left aside, such as {others[0]}"
        )


def _explained(listing: Listing, root: Path) -> Listing:
    """The listing, with one fault in place of many where the whole folder has another layout."""
    if listing.flat and not listing.images and not listing.faults:
        listing.classes.clear()
        listing.faults.append(
            Fault(
                str(root),
                f"images directly in {_quoted(listing.flat)}: one folder level is missing",
                "a suite is <task>/<class>/<image>; move class folders into a folder named after their task",
            )
        )
    return listing


def _visible(folder: Path, listing: Listing) -> tuple[list[Path], list[Path]]:
    """Folders and files that are neither hidden nor clutter, each sorted by name."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.casefold() in _CLUTTER:
                    continue
                (folders if entry.is_dir() else files).append(Path(entry.path))
    except OSError as error:
        listing.faults.append(
            Fault(str(folder), f"cannot be read: {error.strerror}", "check its permissions")
        )
    first: dict[str, Path] = {}
    for path in sorted(folders):
        if (other := first.setdefault(normalise_name(path.name), path)) != path:
            listing.faults.append(
                Fault(str(path), f"the same name as {other.name!r}, encoded otherwise", "rename one of them")
            )
    return sorted(folders), sorted(files)


def _are_parts(folders: Sequence[Path]) -> bool:
    return bool(folders) and all(folder.name.casefold() in PART_WORDS for folder in folders)


def _name_of(folder: Path, root: Path, listing: Listing) -> str:
    if not _is_text(folder.name):
        listing.faults.append(
            Fault(ascii(_relative(folder, root)), "a folder name that is not UTF-8", "rename the folder")
        )
        return ascii(folder.name)
    return normalise_name(folder.name)


def _relative(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return normalise_name(relative) if _is_text(relative) else relative


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(f'"{name}"' for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def missing_source(path: Path) -> Fault:
    """The fault of a source that does not exist, with the nearest name beside it."""
    try:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix.lower() == ".csv"]
    except OSError:
        return Fault(str(path), "does not exist", f"there is no folder {path.parent} either")
    return Fault(
        str(path), "does not exist", nearest(path.name, (name for name in beside if not name.startswith(".")))
    )
