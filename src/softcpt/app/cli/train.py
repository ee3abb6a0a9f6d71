"""``softcpt train``: one run, from a suite and a backbone to a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from softcpt.app.cli.options import (
    Command,
    backbone_option,
    cache_choice,
    cache_options,
    overrides_of,
    pairs_argument,
    settings_options,
    skip_option,
    suite_argument,
)
from softcpt.app.cli.progress import clock, show_progress
from softcpt.app.cli.show import say, show_notes


@click.command(cls=Command, short_help="Train a method on all tasks of a suite.")
@suite_argument()
@pairs_argument()
@backbone_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="The run folder to write."
)
@settings_options
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
@skip_option()
@cache_options
@click.option("--quiet", is_flag=True, help="Only the run's folder on stdout; no progress, notes and hints.")
def train(
    suite: Path,
    pairs: tuple[str, ...],
    backbone: str | None,
    output: Path,
    config: Path | None,
    overwrite: bool,
    skip_bad_images: bool,
    cache: Path | None,
    no_cache: bool,
    quiet: bool,
    **settings: str | None,
) -> None:
    """Train one method on all tasks of SUITE and write a run folder.

    SUITE is a folder <task>/<class>/<image>, with or without a suite.yaml, or a CSV manifest. KEY=VALUE
    changes a setting, such as epochs=20 or lr=0.01; softcpt methods lists the keys.
    """
    overrides = overrides_of(settings, pairs)
    kept = cache_choice(cache, no_cache)
    from softcpt.engine.train import train as train_run

    try:
        with show_progress(quiet=quiet) as listener:
            run = train_run(
                suite,
                backbone,
                output,
                config=config,
                overwrite=overwrite,
                skip_bad_images=skip_bad_images,
                cache=kept,
                on_progress=listener,
                overrides=overrides,
            )
    except KeyboardInterrupt:
        if (output / "config.json").exists() and not (output / "result.json").exists():
            say(f"{output} holds an unfinished run; the same command with --overwrite starts it again")
        raise
    if not quiet:
        show_notes(run.split["notes"], all_in=str(run.path / "log.txt"))
        place = shlex.quote(str(run.path))
        say(
            f"done in {clock(run.result['seconds'])}; next:\n"
            f"  softcpt evaluate {place}\n"
            f"  softcpt predict {place} IMAGE"
        )
    click.echo(run.path)
