"""``softcpt demo``: the main job, from images to scores, on input that needs nothing from outside."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import Command
from softcpt.app.cli.progress import show_progress
from softcpt.app.cli.show import new_table, percent, say, show_table
from softcpt.core.errors import Fault, RunError

if TYPE_CHECKING:
    from softcpt.engine.evaluate import Evaluation

METHODS = ("coop-ca", "coop-mt", "softcpt-nata")
TASKS = ("shape", "colour", "pattern")
IMAGES_PER_CLASS = 40
SHOTS = 4
EPOCHS = 12

MARK = ".softcpt-demo"
"""A file that tells a demo's folder from one that must not be replaced."""


@click.command(cls=Command, short_help="See the main job on drawn images, in about a minute.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    metavar="DIR",
    help="Where images, backbone and runs go; an earlier demo there is replaced.",
)
def demo(output: Path) -> None:
    """Draw a suite, make a small random backbone, train three methods, and compare them with zero-shot.

    Needs neither network nor downloads. The backbone knows nothing, so that the scores show that everything
    works, not what a CLIP can do.
    """
    _make_folder(output)
    from softcpt.clip.backbone import load_backbone
    from softcpt.clip.toy import write_toy_backbone
    from softcpt.data.drawn import draw_suite
    from softcpt.data.suite import load_suite

    suite = load_suite(draw_suite(output / "suite", tasks=TASKS, images_per_class=IMAGES_PER_CLASS))
    say(
        f"drew {len(suite.records)} images of {len(suite.tasks)} tasks with {suite.n_classes} classes "
        f"into {suite.root}",
    )
    backbone = load_backbone(write_toy_backbone(output / "backbone"))
    say(f"made a small CLIP with random weights in {output / 'backbone'}")
    from softcpt.engine.evaluate import evaluate
    from softcpt.engine.train import train

    found: dict[str, Evaluation] = {}
    for method in METHODS:
        say(f"training {method} with {SHOTS} images per class")
        with show_progress(quiet=False) as listener:
            run = train(
                suite,
                backbone,
                output / "runs" / method,
                method=method,
                shots=SHOTS,
                epochs=EPOCHS,
                cache=output / "cache",
                on_progress=listener,
            )
            found[method] = evaluate(run, backbone=backbone, cache=output / "cache")
    _show(found)
    _say_what_next(output)


def _make_folder(output: Path) -> None:
    """An empty folder with our mark; an earlier demo in it is removed, anything else is left alone."""
    if (output / MARK).is_file():
        shutil.rmtree(output)
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(
            Fault(str(output), "exists and is no earlier demo", "name another folder with --output"),
            about="the demo's folder",
        )
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_text("made by softcpt demo, which replaces this folder when it runs again\n")


def _show(found: dict[str, Evaluation]) -> None:
    first = next(iter(found.values()))
    names = ["zero-shot", *found]
    table = new_table(
        "task",
        "test images",
        *names,
        numbers=("test images", *names),
        title=f"Accuracy in percent, {SHOTS} training images per class, {EPOCHS} epochs",
    )
    for i, task in enumerate(first.tasks):
        scores = [percent(evaluation.tasks[i].score) for evaluation in found.values()]
        table.add_row(task.name, str(task.n_images), percent(task.zero_shot), *scores)
    table.add_section()
    means = [percent(evaluation.score) for evaluation in found.values()]
    table.add_row("mean over tasks", "", percent(first.zero_shot), *means)
    show_table(table)


def _say_what_next(output: Path) -> None:
    chosen = shlex.quote(str(output / "runs" / METHODS[-1]))
    images = shlex.quote(str(output / "suite" / TASKS[0]))
    click.echo(
        "The backbone's weights are random: these figures show that the machinery works from images to\n"
        "scores, not what a CLIP can do, nor which method is better.\n"
        "\n"
        "On your own images, in folders my_suite/<task>/<class>/<image>, with a real backbone:\n"
        "  softcpt check    my_suite --backbone ViT-B-16/openai --shots 8\n"
        "  softcpt train    my_suite --backbone ViT-B-16/openai --shots 8 --output runs/first\n"
        "  softcpt evaluate runs/first\n"
        "\n"
        "Or look at what was made here:\n"
        f"  softcpt predict  {chosen} {images} --task {TASKS[0]} --top 1"
    )
