"""A folder or manifest -> a :class:`Suite`, or everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from softcpt.core.errors import Fault, ImageError, SuiteError, nearest
from softcpt.core.names import normalise_name
from softcpt.data import suite_checks
from softcpt.data.identical import identical_files
from softcpt.data.image import check_image
from softcpt.data.manifest import MANIFEST_FILE, list_manifest
from softcpt.data.readers import Listing, list_folders, missing_source
from softcpt.data.record import Record, Suite, Task
from softcpt.data.suite_file import SUITE_FILE, SuiteFile, TaskEntry, read_suite_file


def load_suite(source: str | Path, *, skip_bad_images: bool = False, check_images: bool = True) -> Suite:
    """The tasks and labelled images of a folder or CSV manifest.

    Args:
        source: a folder ``<task>/<class>/<image>``, or a CSV file with the columns ``image,task,class``
            and, if wanted, ``split`` and ``group``. A ``suite.yaml`` in the folder (beside the manifest)
            gives the order and readable names of tasks and classes, descriptions, templates, metrics.
        skip_bad_images: leave images out that cannot be decoded, with a note for each.
        check_images: decode every image now rather than failing in the middle of a run.

    Raises:
        SuiteError: everything that is wrong, in one list.

    Example:
        >>> from softcpt.data.drawn import draw_suite
        >>> import tempfile, pathlib
        >>> folder = draw_suite(pathlib.Path(tempfile.mkdtemp()) / "drawn", images_per_class=4)
        >>> [task.name for task in load_suite(folder).tasks][:2]
        ['shape', 'colour']
    """
    suite, faults = scan_suite(source)
    if suite is not None and check_images:
        bad = find_bad_images(suite)
        if skip_bad_images:
            suite, emptied = _without(suite, bad)
            faults += emptied
        else:
            faults += [
                Fault(record.relative, reason, "mend or remove it, or go on with --skip-bad-images")
                for record, reason in bad
            ]
    if faults or suite is None:
        raise SuiteError(faults, about=str(source))
    return suite


def scan_suite(source: str | Path) -> tuple[Suite | None, list[Fault]]:
    """The suite as far as it is usable, and every fault that shows without decoding an image.

    The suite is None where nothing usable is left. With faults it is for showing, not for training.
    """
    source = Path(source)
    if not source.exists():
        return None, [missing_source(source)]
    if source.is_file() and source.suffix.lower() != ".csv":
        fix = (
            f"give its folder, {source.parent}" if source.name == SUITE_FILE else "columns: image,task,class"
        )
        return None, [Fault(str(source), "neither a folder nor a CSV manifest", fix)]
    root = source if source.is_dir() else source.parent
    described, faults = None, list[Fault]()
    if (root / SUITE_FILE).is_file():
        described, faults = read_suite_file(root / SUITE_FILE)
    if source.is_file():
        listing, described = _manifest(source, described)
    else:
        listing = list_folders(root, described)
        manifest = root / MANIFEST_FILE
        if manifest.is_file() and any(listing.classes.values()):
            faults.append(
                Fault(str(root), f"holds both class folders and {MANIFEST_FILE}", f"name {manifest} itself")
            )
        elif manifest.is_file():
            source = manifest
            listing, described = _manifest(manifest, described)
    faults += listing.faults
    suite = _build(root, source, listing, described, faults)
    return suite, faults


def find_bad_images(suite: Suite) -> list[tuple[Record, str]]:
    """Every image that cannot be decoded to its end, with the reason; in the suite's order."""

    def reason(record: Record) -> str | None:
        try:
            check_image(record.path)
        except ImageError as error:
            return error.faults[0].what
        return None

    # PIL decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        reasons = pool.map(reason, suite.records)
        return [(record, why) for record, why in zip(suite.records, reasons, strict=True) if why is not None]


def _manifest(manifest: Path, described: SuiteFile | None) -> tuple[Listing, SuiteFile | None]:
    """The manifest's images, and the ``suite.yaml`` beside it where that speaks of the same tasks."""
    listing = list_manifest(manifest, described)
    if described is None or described.tasks is None:
        return listing, described
    named = {task.name for task in described.tasks}
    given = set(listing.classes)
    if not named & given:
        listing.notes.append(f"{SUITE_FILE}: none of its tasks stands in {manifest.name}; it is left aside")
        return listing, None
    listing.faults += [
        Fault(f"{manifest.name}: task {task!r}", f"not named in {SUITE_FILE}", nearest(task, named - given))
        for task in sorted(given - named)
    ]
    if left := [task.name for task in described.tasks if task.name not in given]:
        listing.notes.append(
            f"{SUITE_FILE}: no rows in {manifest.name} for {', '.join(map(repr, left))}; left aside"
        )
    kept = [task for task in described.tasks if task.name in given]
    for task in kept:
        classes = task.readable_names()
        listing.faults += [
            Fault(
                f"{manifest.name}: class {name!r} of task {task.name!r}",
                f"not named in {SUITE_FILE}",
                nearest(name, classes or ()),
            )
            for name in sorted(listing.classes[task.name].difference(classes or listing.classes[task.name]))
        ]
    return listing, described.model_copy(update={"tasks": kept})


def _build(
    root: Path, source: Path, listing: Listing, described: SuiteFile | None, faults: list[Fault]
) -> Suite | None:
    """The suite from what was found; faults of the whole are appended to ``faults``."""
    if described and described.tasks is not None:
        entries = list(described.tasks)
        faults += suite_checks.missing_tasks(entries, listing)
    else:
        # a model is only made here for its defaults; folder names were checked for being text
        entries = [TaskEntry(name=name) for name in sorted(listing.classes)]
    tasks: list[Task] = []
    label_of: dict[tuple[str, str], tuple[int, int]] = {}
    for entry in entries:
        present = listing.classes.get(entry.name)
        if present is None:
            continue
        names = entry.readable_names() or {folder: folder for folder in sorted(present)}
        faults += suite_checks.class_faults(entry.name, names, present, listing)
        for label, folder in enumerate(names):
            label_of[entry.name, folder] = (len(tasks), label)
        tasks.append(
            Task(entry.name, tuple(names.values()), entry.description or None, entry.template, entry.metric)
        )
    if not entries and not faults:
        faults.append(Fault(str(root), "no tasks", "a suite is <task>/<class>/<image>"))
    faults += suite_checks.repeated_tasks(tasks)
    listing.notes += suite_checks.same_but_for_case(tasks)
    faults += suite_checks.split_faults(listing.images)
    records = []
    for found in listing.images:
        if (place := label_of.get((found.task, found.folder))) is None:
            continue
        if not os.access(found.path, os.R_OK):
            faults.append(Fault(found.place, f"{found.relative} cannot be read", "check its permissions"))
            continue
        records.append(Record(found.path, found.relative, *place, found.part, found.group))
    if not records:
        return None
    records.sort(key=lambda r: (r.task, r.label, r.relative))
    kept, repeated = _without_repeats(tasks, records, faults, listing.notes)
    faults += suite_checks.leaks(records, repeated)
    name = (described.name if described else None) or normalise_name(root.resolve().name) or "suite"
    notes = (*listing.notes, *suite_checks.part_notes(tasks, kept))
    return Suite(name, root, source, tuple(tasks), tuple(kept), notes)


def _without_repeats(
    tasks: Sequence[Task], records: list[Record], faults: list[Fault], notes: list[str]
) -> tuple[list[Record], list[list[int]]]:
    """The records with one per distinct file of a class, and all groups of identical files."""
    repeated = identical_files(records)
    dropped: set[int] = set()
    for indices in repeated:
        first: dict[tuple[int, int], int] = {}
        for i in indices:
            kept = records[first.setdefault((records[i].task, records[i].label), i)]
            if kept is records[i]:
                continue
            dropped.add(i)
            notes.append(f"{records[i].relative}: the same file as {kept.relative}, counted once")
            if records[i].group != kept.group:
                faults.append(
                    Fault(
                        records[i].relative,
                        f"the same file as {kept.relative}, but in another group",
                        "give both one group, or remove one",
                    )
                )
        notes += suite_checks.two_labels(tasks, [records[i] for i in first.values()])
    return [record for i, record in enumerate(records) if i not in dropped], repeated


def _without(suite: Suite, bad: Sequence[tuple[Record, str]]) -> tuple[Suite, list[Fault]]:
    """The suite without its bad images, each noted, and a fault for every class that lost all of its own."""
    dropped = {record for record, _ in bad}
    left = tuple(record for record in suite.records if record not in dropped)
    notes = tuple(f"{record.relative}: left out, {reason}" for record, reason in bad)
    before = {(record.task, record.label) for record in suite.records}
    emptied = before - {(record.task, record.label) for record in left}
    faults = [
        Fault(
            f"{suite.tasks[task].name}/{suite.tasks[task].classes[label]}",
            "none of its images can be read",
            "replace them, or remove the class",
        )
        for task, label in sorted(emptied)
    ]
    return replace(suite, records=left, notes=suite.notes + notes), faults
