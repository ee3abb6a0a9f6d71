"""What can be wrong with a suite, or worth a note, beyond the reading of its files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from softcpt.core.errors import Fault, nearest
from softcpt.data.readers import Found, Listing
from softcpt.data.record import Record, Task
from softcpt.data.suite_file import SUITE_FILE, TaskEntry, same_name_key


def missing_tasks(entries: Sequence[TaskEntry], listing: Listing) -> Iterable[Fault]:
    """Tasks that ``suite.yaml`` names and the folder does not hold."""
    for i, entry in enumerate(entries):
        if entry.name not in listing.classes:
            yield Fault(
                f"{SUITE_FILE}: tasks[{i}].name",
                f'no folder "{entry.name}"',
                nearest(entry.name, listing.left_aside) or "make the folder, or remove the task",
            )


def class_faults(task: str, names: dict[str, str], present: set[str], listing: Listing) -> Iterable[Fault]:
    """Classes that are missing, empty, nameless, alone, or read like another one of the task."""
    filled = {(found.task, found.folder) for found in listing.images}
    first: dict[str, str] = {}
    for folder, readable in names.items():
        place = f"{task}/{folder}"
        key = same_name_key(readable)
        if folder not in present:
            left = {name.rpartition("/")[2] for name in listing.left_aside if name.startswith(f"{task}/")}
            yield Fault(
                place,
                "no such class, though suite.yaml names it",
                nearest(folder, left) or "add its images, or remove the class from suite.yaml",
            )
        elif (task, folder) not in filled:
            yield Fault(place, "no images", "add images, or remove the class")
        if not key:
            yield Fault(place, "an empty class name", "name the class")
        elif key in first:
            yield Fault(place, f'"{readable}" reads the same as class "{first[key]}"', "rename one of them")
        first.setdefault(key, readable)
    if len(names) < 2:
        yield Fault(
            task,
            "no classes" if not names else f'only one class, "{next(iter(names))}"',
            "a task needs at least two class folders with images",
        )


def repeated_tasks(tasks: Sequence[Task]) -> Iterable[Fault]:
    """Tasks whose names are empty or read like another's."""
    first: dict[str, str] = {}
    for task in tasks:
        key = same_name_key(task.name)
        if not key:
            yield Fault(repr(task.name), "an empty task name", "name the task")
        elif key in first:
            yield Fault(task.name, f'reads the same as task "{first[key]}"', "rename one of them")
        first.setdefault(key, task.name)


def same_but_for_case(tasks: Sequence[Task]) -> Iterable[str]:
    """Notes on classes that are told apart by capitals only."""
    for task in tasks:
        counts = Counter(same_name_key(name).casefold() for name in task.classes)
        for name in task.classes:
            if counts[same_name_key(name).casefold()] > 1 and same_name_key(name).casefold() != name:
                yield (
                    f"{task.name}: class {name!r} differs from another only in capitals, "
                    "which CLIP's prompts do not show"
                )


def split_faults(images: Sequence[Found]) -> Iterable[Fault]:
    """A split is given for all images or for none; then a group has one part."""
    bare = [found for found in images if found.part is None]
    if bare and len(bare) < len(images):
        shown = ", ".join(found.place for found in bare[:5]) + (", ..." if len(bare) > 5 else "")
        yield Fault(
            "split",
            f"{len(images) - len(bare)} images have a given split, {len(bare)} have none: {shown}",
            "give every image a split, or none",
        )
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for found in images:
        if found.group is not None and found.part is not None:
            parts[found.group].setdefault(found.part, found.place)
    for group, places in parts.items():
        if len(places) > 1:
            yield Fault(
                f'group "{group}"',
                "its images lie in " + " and ".join(f"{part} ({place})" for part, place in places.items()),
                "keep a group in one part",
            )


def two_labels(tasks: Sequence[Task], same: Sequence[Record]) -> Iterable[str]:
    """Notes on one image that stands in several classes of a task."""
    of_task: dict[int, list[Record]] = defaultdict(list)
    for record in same:
        of_task[record.task].append(record)
    for task, records in of_task.items():
        if len(records) > 1:
            names = " and ".join(repr(tasks[task].classes[record.label]) for record in records)
            yield (
                f"{records[0].relative}: the same image stands in the classes {names} "
                f"of task {tasks[task].name!r}; all labels are kept"
            )


def leaks(records: Sequence[Record], repeated: Sequence[Sequence[int]]) -> Iterable[Fault]:
    """Given splits that put one image into two parts."""
    for indices in repeated:
        places: dict[str, str] = {}
        for i in indices:
            if (part := records[i].part) is not None:
                places.setdefault(part, records[i].relative)
        if len(places) > 1:
            (first, relative), *others = places.items()
            yield Fault(
                relative,
                f"the same image in {first} and in "
                + " and in ".join(f"{other} ({path})" for other, path in others),
                "keep it in one part",
            )


def part_notes(tasks: Sequence[Task], records: Sequence[Record]) -> Iterable[str]:
    """Notes on what a given split lacks: val images, or a class's training or test images."""
    if not any(record.part for record in records):
        return
    if not any(record.part == "val" for record in records):
        yield "the given split has no val images; nothing can be chosen by them"
    counts = Counter((record.task, record.label, record.part) for record in records)
    for t, task in enumerate(tasks):
        for wanted in ("train", "test"):
            empty = [name for label, name in enumerate(task.classes) if not counts[t, label, wanted]]
            if empty:
                yield f"{task.name}: the given split has no {wanted} images of {', '.join(map(repr, empty))}"
