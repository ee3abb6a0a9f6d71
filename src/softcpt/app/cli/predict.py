"""``softcpt predict``: the classes of new images, by the tasks of a finished run."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import Command, device_option, moved_backbone_option, run_argument
from softcpt.app.cli.show import new_table, percent, say, show_table

if TYPE_CHECKING:
    from softcpt.app.cli.sources import Named
    from softcpt.deploy.predictor import Prediction, Predictor

NOTHING_READ = 3
"""Exit code when not one image could be read: that of faults in the data."""

CSV_COLUMNS = ("image", "task", "rank", "class", "probability", "fault")


@click.command(cls=Command, short_help="Predict the classes of new images.")
@run_argument()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER|-...")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task; may be repeated.")
@click.option(
    "--top", type=click.IntRange(min=1), default=3, show_default=True, help="Classes to show of each task."
)
@click.option("--json", "form", flag_value="json", help="One JSON list.")
@click.option("--jsonl", "form", flag_value="jsonl", help="One JSON object a line, each when it is known.")
@click.option("--csv", "form", flag_value="csv", help="A row per image, task and rank.")
@moved_backbone_option
@device_option()
def predict(
    run: Path,
    images: tuple[str, ...],
    tasks: tuple[str, ...],
    top: int,
    form: str | None,
    backbone: str | None,
    device: str,
) -> int:
    """Predict the classes of images by all tasks of RUN, or by those named with --task.

    A FOLDER is searched recursively; - reads one image, or one path per line, from standard input. An image
    that cannot be read is a row with its fault; the exit code is 3 if none could be read.
    """
    from softcpt.app.cli.sources import find_images
    from softcpt.data.readers import IMAGE_SUFFIXES
    from softcpt.deploy.predictor import Predictor

    predictor = Predictor(run, backbone=backbone, device=device)
    found = find_images(images, suffixes=IMAGE_SUFFIXES, stdin=sys.stdin.buffer)
    wanted = list(tasks) or None
    predictor.predict([], wanted)  # refuses unknown tasks before anything is written
    counted = _Counted(_predict_all(predictor, found, wanted, top))
    _WRITERS[form](counted)
    if not counted.good and not counted.bad:
        say("there was nothing to predict; did anything come through standard input?", style="yellow")
    if counted.bad:
        say(f"{counted.bad} of {counted.bad + counted.good} rows hold a fault", style="yellow")
    return 0 if counted.good else NOTHING_READ


def _predict_all(
    predictor: Predictor, found: Iterable[Named], tasks: Sequence[str] | None, top: int
) -> Iterator[Prediction]:
    """The predictor's answers under our names, and in their places the rows of what is no image at all."""
    from softcpt.deploy.predictor import Prediction

    every = [task.name for task in predictor.tasks]
    for kind, group in groupby(found, key=lambda named: type(named.content)):
        if issubclass(kind, Path):
            paths = (named.content for named in group if isinstance(named.content, Path))
            yield from predictor.predict(paths, tasks, top)
            continue
        for named in group:
            if isinstance(named.content, bytes):
                for prediction in predictor.predict(named.content, tasks, top):
                    yield replace(prediction, image=named.name)
            else:
                for task in tasks or every:
                    yield Prediction(named.name, task, (), named.fault)


class _Counted:
    """Predictions passed on one by one, fit to be written, and how many are good or hold a fault."""

    def __init__(self, predictions: Iterable[Prediction]) -> None:
        self._predictions = predictions
        self.good = 0
        self.bad = 0

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self._predictions:
            if prediction.fault is None:
                self.good += 1
            else:
                self.bad += 1
            yield replace(prediction, image=_writable(prediction.image))


def _writable(name: str) -> str:
    """A file name with what is no UTF-8 in it replaced; such bytes could not be written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _as_json(row: Prediction) -> dict[str, object]:
    value: dict[str, object] = {
        "image": row.image,
        "task": row.task,
        "predictions": [{"class": name, "probability": p} for name, p in row.predictions],
    }
    return value if row.fault is None else {**value, "fault": row.fault}


def _write_json(rows: Iterable[Prediction]) -> None:
    click.echo(json.dumps([_as_json(row) for row in rows], indent=1, ensure_ascii=False))


def _write_jsonl(rows: Iterable[Prediction]) -> None:
    for row in rows:
        click.echo(json.dumps(_as_json(row), ensure_ascii=False))  # echo flushes: each line is there at once


def _write_csv(rows: Iterable[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        for rank, (name, probability) in enumerate(row.predictions, start=1):
            writer.writerow((row.image, row.task, rank, name, f"{probability:.6g}", ""))
        if row.fault is not None:
            writer.writerow((row.image, row.task, "", "", "", row.fault))


def _write_table(rows: Iterable[Prediction]) -> None:
    from rich.text import Text

    rows = list(rows)
    ranks = max((len(row.predictions) for row in rows), default=0)
    table = new_table("image", "task", *(f"class {rank}" for rank in range(1, ranks + 1)))
    if any(row.fault for row in rows):
        table.add_column("fault", overflow="fold")
    for row in rows:
        cells = [Text(f"{name} {percent(p)} %") for name, p in row.predictions]
        cells += [Text("")] * (ranks - len(cells))
        fault = [Text(row.fault, "red")] if row.fault else []
        table.add_row(Text(row.image), Text(row.task), *cells, *fault)
    show_table(table)


_WRITERS: dict[str | None, Callable[[Iterable[Prediction]], None]] = {
    None: _write_table,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
