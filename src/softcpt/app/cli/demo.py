"""``softcpt demo``: the main job, from images to scores, on input that needs nothing from outside."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softcpt.app.cli.options import Command, json_option
from softcpt.app.cli.progress import clock, show_progress
from softcpt.app.cli.show import new_table, say, show_table

if TYPE_CHECKING:
    from softcpt.app.demo import Demo

DEFAULT_OUTPUT = Path("demo")


@click.command(cls=Command, short_help="See the main job on drawn pictures, in two minutes.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=DEFAULT_OUTPUT,
    show_default=True,
    metavar="DIR",
    help="Where pictures, runs and report go; an earlier demo there is replaced.",
)
@json_option("One JSON object instead of the table; accuracies in percent.")
@click.option("--quiet", is_flag=True, help="No progress and hints.")
def demo(output: Path, as_json: bool, quiet: bool) -> None:
    """Draw a suite of tasks, train three methods with 1 and 4 images per class, compare them with zero-shot.

    Writes a report that a browser opens. Needs neither network nor data: the pictures are drawn, and the
    small CLIP comes with the package.
    """
    from softcpt.app import demo as room
    from softcpt.app.demo_page import demo_page
    from softcpt.clip.backbone import load_backbone
    from softcpt.report.page import write_page

    room.check_folder(output)
    backbone = load_backbone(room.PLAN.backbone)  # before an earlier demo is removed
    command = shlex.join(
        ["softcpt", "demo", *(["--output", str(output)] if output != DEFAULT_OUTPUT else [])]
    )
    report = output / room.REPORT
    try:
        with room.open_demo(output) as folder:
            with show_progress(quiet=quiet) as listener:
                found = room.run_demo(folder, backbone, room.PLAN, on_progress=listener)
            write_page(demo_page(found, command), report)
    except KeyboardInterrupt:
        if output.is_dir() and not report.exists():
            say(f"{output} holds an unfinished demo; the same command starts it again")
        raise
    if as_json:
        click.echo(json.dumps(_to_json(found, report), indent=1, ensure_ascii=False, allow_nan=False))
        return
    _show(found)
    click.echo(f"report: {report}")
    if not quiet:
        _say_what_next(found)


def _show(found: Demo) -> None:
    from softcpt.report.sections import scores_table

    table = scores_table(found.results, found.made.suite)
    shown = new_table(*table.columns, numbers=table.columns[1:], title=table.caption)
    for row in table.rows:
        shown.add_row(*row)
    show_table(shown)
    click.echo(table.note.partition(" Bold:")[0])


def _to_json(found: Demo, report: Path) -> dict[str, Any]:
    plan, made = found.plan, found.made
    return {
        "folder": str(found.folder),
        "report": str(report),
        "suite": {"name": made.suite, "seed": made.seed, "images": made.n_images, "tasks": made.classes,
                  "digest": made.digest},
        "backbone": {"name": found.backbone.name, "digest": found.backbone.digest},
        "settings": {"epochs": plan.epochs, "views": plan.views, "lr": dict(plan.rates)},
        "threads": found.threads,
        "seconds": round(found.seconds, 1),
        "rows": [row.to_json() for row in found.results.rows],
    }  # fmt: skip


def _say_what_next(found: Demo) -> None:
    from softcpt.app.demo import cells_of, run_folder
    from softcpt.app.demo_page import MEANING, NEXT_STEPS

    chosen = run_folder(found.folder, cells_of(found.plan)[-1])
    task = found.plan.tasks[0]
    steps = "\n".join(f"  {step}" for step in NEXT_STEPS)
    predict = shlex.join(["softcpt", "predict", str(chosen), str(found.made.folder / task), "--task", task])
    say(
        f"done in {clock(found.seconds)}. {MEANING}\n"
        f"On your own images, in folders my_suite/<task>/<class>/<image>, with a larger backbone:\n{steps}\n"
        f"Or look at what was made here:\n  {predict} --top 1"
    )
