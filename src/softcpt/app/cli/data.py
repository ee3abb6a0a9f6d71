"""``softcpt data``: suites that the package makes itself. Imports no torch."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import click

from softcpt.app.cli.options import Group, json_option
from softcpt.app.cli.progress import show_progress
from softcpt.app.cli.show import say


@click.group(
    cls=Group,
    invoke_without_command=True,
    short_help="Make a built-in suite: drawn scenes, or handwritten digits.",
)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Make suites of the package's own, to try things on before there are images."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@data.command(short_help="Write a built-in suite to a folder.")
@click.argument("builtin", metavar="scenes|digits")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Draws the pictures.")
@click.option("--images-per-class", type=int, metavar="N", help="Pictures of each class.  [default: 60]")
@click.option(
    "--size", type=int, default=64, show_default=True, metavar="PX", help="Height and width of a picture."
)
@click.option("--tasks", metavar="A,B,C", help="Only these tasks of the suite.  [default: all]")
@json_option("One JSON object instead of the summary.")
@click.option("--quiet", is_flag=True, help="No progress and hints.")
def make(
    builtin: str,
    folder: Path,
    seed: int,
    images_per_class: int | None,
    size: int,
    tasks: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write a built-in suite to DIR in the ordinary layout, with a suite.yaml.

    DIR is new or empty; it is there with everything in the end, or not at all. The same options give the same
    pictures on every machine.
    """
    from softcpt.builtin.make import make_suite

    start_s = time.monotonic()
    with show_progress(quiet=quiet) as listener:
        made = make_suite(
            builtin,
            folder,
            seed=seed,
            tasks=None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()],
            images_per_class=images_per_class,
            size_px=size,
            on_progress=listener,
        )
    if as_json:
        shown = {
            "folder": str(made.folder),
            "suite": made.suite,
            "seed": made.seed,
            "size_px": made.size_px,
            "images": made.n_images,
            "tasks": made.classes,
            "digest": made.digest,
        }
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    click.echo(
        f"{made.folder}: {made.n_images:,} images of {made.size_px} px, {len(made.classes)} tasks, "
        f"{sum(made.classes.values())} classes\n"
        f"pixels: {made.digest}"
    )
    if not quiet:
        say(
            f"made in {time.monotonic() - start_s:.0f} s; next: softcpt check {shlex.quote(str(folder))}",
            style="dim",
        )
