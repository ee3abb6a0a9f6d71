"""``softcpt check``: everything a run would stumble over, and what it would take, before it is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import (
    Command,
    json_option,
    optional_backbone_option,
    overrides_of,
    pairs_argument,
    settings_options,
    skip_option,
    suite_argument,
)
from softcpt.app.cli.progress import clock
from softcpt.app.cli.show import new_table, say, show_notes, show_table

if TYPE_CHECKING:
    from softcpt.engine.check import Cost, Report, TaskReport


@click.command(cls=Command, short_help="Find every fault of a suite; counts, prompts, expected time.")
@suite_argument()
@pairs_argument()
@optional_backbone_option
@settings_options
@skip_option()
@json_option("One JSON object instead of the tables.")
def check(
    suite: Path,
    pairs: tuple[str, ...],
    backbone: str | None,
    config: Path | None,
    skip_bad_images: bool,
    as_json: bool,
    **settings: str | None,
) -> None:
    """Find every fault of SUITE at once; without any, show counts, prompts and what a run would take.

    Takes the same settings as softcpt train, so that the run is checked that will be started. Trains nothing.
    """
    overrides = overrides_of(settings, pairs)
    from softcpt.engine.check import check_suite
    from softcpt.engine.config import read_config_file

    report = check_suite(
        suite,
        backbone=backbone,
        skip_bad_images=skip_bad_images,
        overrides={**(read_config_file(config) if config else {}), **overrides},
        on_stage=lambda stage: say(f"{stage} ...", style="dim"),
    )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    _show_counts(report)
    _show_prompts(report.tasks)
    _show_cost(report.cost)
    show_notes(report.notes, all_in="the output of --json")


def _show_counts(report: Report) -> None:
    shots = "all" if report.shots is None else report.shots
    numbers = ("classes", "images", "train", "val", "test", "drawn train", "drawn val")
    table = new_table(
        "task",
        "metric",
        *numbers,
        numbers=numbers,
        title=f"{report.suite}: no faults; {report.method}, {shots} shots",
    )
    rows = [
        (task.n_classes, task.n_images, *(task.n_parts[p] for p in ("train", "val", "test")),
         *(task.n_drawn[p] for p in ("train", "val")))
        for task in report.tasks
    ]  # fmt: skip
    for task, row in zip(report.tasks, rows, strict=True):
        table.add_row(task.name, task.metric, *map(str, row))
    table.add_section()
    table.add_row("all tasks", "", *(str(sum(column)) for column in zip(*rows, strict=True)))
    show_table(table)


def _show_prompts(tasks: Sequence[TaskReport]) -> None:
    table = new_table("task", "kind", "prompt, for the first class")
    for task in tasks:
        table.add_row(task.name, "zero-shot", task.zero_shot_prompt)
        table.add_row("", "learned", task.class_prompt)
        if task.task_prompt is not None:
            table.add_row("", "of the task", task.task_prompt)
    show_table(table)


def _show_cost(cost: Cost) -> None:
    lines = [
        f"training: {cost.steps:,} steps with {cost.prompts:,} class prompts each, "
        f"{cost.views:,} views of images, {cost.n_learned:,} learned numbers",
        f"expected time: {clock(cost.train_s)} to train, {clock(cost.evaluate_s)} to evaluate "
        f"{cost.test_images:,} test images",
        f"expected memory: {cost.memory_bytes / 2**20:,.0f} MiB of weights and activations",
        f"measured on: {cost.measured_on}",
    ]
    click.echo("\n".join(lines))
