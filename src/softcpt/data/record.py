"""What a suite is: frozen values, no behaviour beyond looking things up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from softcpt.core.files import digest_of_file

Part = Literal["train", "val", "test"]
Metric = Literal["overall_acc", "mean_acc"]

DEFAULT_TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, slots=True)
class Task:
    """One classification task.

    Attributes:
        name: NFC-normalised, unique in the suite.
        classes: readable class names in label order, NFC-normalised, unique in the task.
        description: a sentence about the task, or None.
        template: zero-shot template with one ``{}``.
        metric: ``overall_acc`` (share of right images) or ``mean_acc`` (mean over classes).
    """

    name: str
    classes: tuple[str, ...]
    description: str | None = None
    template: str = DEFAULT_TEMPLATE
    metric: Metric = "overall_acc"


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image.

    Attributes:
        path: where it is now.
        relative: its path in the suite's folder, with ``/``; its name in every stored file.
        task: index into ``Suite.tasks``.
        label: index into ``Task.classes``.
        part: the part the suite gives it, or None where the split is ours to draw.
        group: images of one group (plant, garment, flight) stay in one part.
    """

    path: Path
    relative: str
    task: int
    label: int
    part: Part | None = None
    group: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes (read once, then remembered while the file is unchanged)."""
        return digest_of_file(self.path)


@dataclass(frozen=True)
class Suite:
    """Several tasks and their images.

    Attributes:
        name: NFC-normalised; part of every random stream drawn for the suite.
        root: its folder (the manifest's folder, for a manifest).
        source: what was asked for: the folder, or the manifest file.
        tasks: in order.
        records: sorted by task, label and relative path; one per distinct file of a class.
        notes: things a reader of results should know (repeated files, classes without images, ...).
    """

    name: str
    root: Path
    source: Path
    tasks: tuple[Task, ...]
    records: tuple[Record, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def n_classes(self) -> int:
        """Classes of all tasks together."""
        return sum(len(task.classes) for task in self.tasks)

    def of_class(self, task: int, label: int) -> list[Record]:
        """The images of one class, in order."""
        return [r for r in self.records if r.task == task and r.label == label]
