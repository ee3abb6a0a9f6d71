"""``softcpt evaluate``: a finished run's scores on test images, beside zero-shot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import (
    Command,
    cache_choice,
    cache_options,
    device_option,
    json_option,
    moved_backbone_option,
    run_argument,
    skip_option,
    suite_argument,
)
from softcpt.app.cli.progress import show_progress
from softcpt.app.cli.show import new_table, percent, show_notes, show_table
from softcpt.core.errors import ConfigError, Fault

if TYPE_CHECKING:
    from softcpt.engine.evaluate import Evaluation

FORMS = (".csv", ".jsonl")


@click.command(cls=Command, short_help="Score a run on test images, beside zero-shot.")
@run_argument()
@suite_argument(required=False)
@json_option("One JSON object instead of the table; accuracies in percent.")
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what was made of each test image to a .csv or .jsonl file.",
)
@moved_backbone_option
@device_option()
@skip_option()
@cache_options
def evaluate(
    run: Path,
    suite: Path | None,
    as_json: bool,
    predictions: Path | None,
    backbone: str | None,
    device: str,
    skip_bad_images: bool,
    cache: Path | None,
    no_cache: bool,
) -> None:
    """Score RUN on the test images of its own suite, or on those of SUITE.

    SUITE must have the same tasks and classes. Only its test part is used, without images that RUN was
    trained on.
    """
    if predictions is not None:
        _check_form(predictions)
    kept = cache_choice(cache, no_cache)
    from softcpt.engine.evaluate import evaluate as evaluate_run

    with show_progress(quiet=False) as listener:
        evaluation = evaluate_run(
            run,
            suite,
            backbone=backbone,
            device=device,
            skip_bad_images=skip_bad_images,
            cache=kept,
            on_progress=listener,
        )
    if predictions is not None:
        _write_predictions(evaluation, predictions)
    if as_json:
        click.echo(json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    _show(evaluation)
    show_notes(evaluation.notes, all_in="the output of --json")


def _show(evaluation: Evaluation) -> None:
    shots = "all" if evaluation.shots is None else evaluation.shots
    table = new_table(
        "task",
        "metric",
        "test images",
        "zero-shot",
        evaluation.method,
        numbers=("test images", "zero-shot", evaluation.method),
        title=f"{evaluation.method} on {evaluation.suite}, {shots} shots, seed {evaluation.seed} (percent)",
    )
    for task in evaluation.tasks:
        table.add_row(
            task.name, task.metric, str(task.n_images), percent(task.zero_shot), percent(task.score)
        )
    table.add_section()
    images = sum(task.n_images for task in evaluation.tasks)
    table.add_row(
        "mean over tasks", "", str(images), percent(evaluation.zero_shot), percent(evaluation.score)
    )
    show_table(table)


def _check_form(file: Path) -> None:
    if file.suffix not in FORMS:
        fault = Fault("--predictions", f"unknown ending {file.suffix!r}", f"use {' or '.join(FORMS)}")
    elif not file.absolute().parent.is_dir():
        fault = Fault("--predictions", f"there is no folder {file.absolute().parent}", "make it first")
    else:
        return
    raise ConfigError(fault, about="the command line")


def _write_predictions(evaluation: Evaluation, file: Path) -> None:
    from softcpt.core.files import write_whole

    rows = [
        {
            "image": scored.image,
            "task": scored.task,
            "label": scored.label,
            "predicted": scored.predicted,
            "probability": max(scored.probabilities),
        }
        for scored in evaluation.predictions
    ]
    if file.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(file, text.getvalue())
        return
    lines = [
        json.dumps({**row, "probabilities": scored.probabilities}, ensure_ascii=False)
        for row, scored in zip(rows, evaluation.predictions, strict=True)
    ]
    write_whole(file, "\n".join(lines) + "\n")
