"""A CSV manifest -> the images it names: ``image,task,class[,split][,group]``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from softcpt.core.errors import Fault, nearest
from softcpt.core.files import relative_part, stays_inside
from softcpt.core.names import normalise_name
from softcpt.data.readers import PART_WORDS, Found, Listing
from softcpt.data.suite_file import SuiteFile

MANIFEST_FILE = "manifest.csv"
NEEDED = ("image", "task", "class")
OPTIONAL = ("split", "group")


def list_manifest(manifest: Path, described: SuiteFile | None) -> Listing:
    """The images of a manifest; their paths are relative to its folder and stay inside it.

    Args:
        manifest: a CSV file in UTF-8, with or without byte order mark.
        described: the ``suite.yaml`` beside it; its classes may be written as folder or as readable names.
    """
    listing = Listing()
    rows = list(_rows(manifest, listing))
    if not rows and not listing.faults:
        listing.faults.append(Fault(manifest.name, "holds no rows", f"columns: {', '.join(NEEDED)}"))
    seen: dict[tuple[str, str, str], int] = {}
    for line, row in rows:
        found = _found(manifest, line, row, described, listing)
        if found is None:
            continue
        key = (found.relative, found.task, found.folder)
        if key in seen:
            listing.faults.append(
                Fault(found.place, f"{found.relative} stands already in line {seen[key]}", "remove one row")
            )
            continue
        seen[key] = line
        listing.images.append(found)
    return listing


def _rows(manifest: Path, listing: Listing) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of every row as long as the header; blank lines are passed over."""
    name = manifest.name
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        listing.faults.append(Fault(name, f"not UTF-8 text (byte {error.start})", "save it as CSV UTF-8"))
        return
    except OSError as error:
        listing.faults.append(Fault(name, f"cannot be read: {error.strerror}", "check its permissions"))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().casefold() for cell in cells]
                if faults := _header_faults(header, name):
                    listing.faults.extend(faults)
                    return
            elif len(cells) != len(header):
                listing.faults.append(
                    Fault(
                        f"{name} line {reader.line_num}",
                        f"{len(cells)} cells, the header has {len(header)}",
                        "put cells that hold a comma in double quotes",
                    )
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        listing.faults.append(Fault(f"{name} line {reader.line_num}", f"not CSV: {error}", "mend the line"))


def _header_faults(header: list[str], name: str) -> list[Fault]:
    place = f"{name} line 1"
    if len(header) == 1 and (marks := [mark for mark in (";", "\t") if mark in header[0]]):
        shown = "tabs" if marks[0] == "\t" else "semicolons"
        return [Fault(place, f"columns are separated by {shown}", "save it with commas")]
    known = (*NEEDED, *OPTIONAL)
    missing = [column for column in NEEDED if column not in header]
    faults = [
        Fault(place, f'unknown column "{column}"', nearest(column, (k for k in known if k not in header)))
        for column in header
        if column not in known
    ]
    faults += [
        Fault(place, f'no column "{column}"', f"columns: {', '.join(NEEDED)} and, if wanted, split, group")
        for column in missing
    ]
    faults += [
        Fault(place, f'the column "{column}" stands twice', "remove one")
        for column in known
        if header.count(column) > 1
    ]
    return faults


def _found(
    manifest: Path, line: int, row: dict[str, str], described: SuiteFile | None, listing: Listing
) -> Found | None:
    """One row as an image, or None with its faults listed; its task and class count all the same."""
    place = f"{manifest.name} line {line}"
    task, folder = normalise_name(row["task"]), normalise_name(row["class"])
    faults = [
        Fault(place, f"the {column} is empty", "fill it in, or remove the row")
        for column, value in (("task", task), ("class", folder))
        if not value
    ]
    if not faults:
        folder = _folder_of(folder, task, described)
        listing.classes.setdefault(task, set()).add(folder)
    word = row.get("split", "").strip()
    part = PART_WORDS.get(word.casefold())
    if word and part is None:
        faults.append(Fault(place, f'unknown split "{word}"', nearest(word, PART_WORDS)))
    image = row["image"].strip()
    inside = relative_part(image)
    if not image:
        faults.append(Fault(place, "the image is empty", "fill it in, or remove the row"))
    elif inside is None:
        faults.append(
            Fault(
                place, f'"{image}" leaves the folder of {manifest.name}', "give a path inside it, without .."
            )
        )
    elif (wrong := _file_fault(manifest.parent, inside.as_posix())) is not None:
        faults.append(Fault(place, *wrong))
    listing.faults.extend(faults)
    if faults or inside is None:
        return None
    group = normalise_name(row.get("group", "")) or None
    return Found(
        manifest.parent / inside, normalise_name(inside.as_posix()), task, folder, part, group, place
    )


def _file_fault(folder: Path, relative: str) -> tuple[str, str] | None:
    """What is wrong with a named file, and the remedy; None where it is a file inside the folder."""
    path = folder / relative
    try:
        if not stays_inside(path, folder):
            return f"{relative} leads out of the folder through a link", "copy the file into the folder"
        if path.is_file():
            return None
        if path.exists():
            return f"{relative} is not a file", "name an image"
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:
        return f"{relative} cannot be read: {error.strerror}", "check its permissions"
    near = nearest(path.name, beside)
    return f"no file {relative}", near if near.startswith("did") else "paths are relative to the manifest"


def _folder_of(name: str, task: str, described: SuiteFile | None) -> str:
    """The folder name of a class that may be given by its readable name."""
    entry = described.task_named(task) if described else None
    names = (entry.readable_names() if entry else None) or {}
    if name in names:
        return name
    return next((folder for folder, readable in names.items() if readable == name), name)
