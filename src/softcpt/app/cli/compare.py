"""``softcpt compare``: methods on suites, shots and seeds, in one table with intervals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import Command, cache_folder_option, needed_backbone_option, skip_option
from softcpt.app.cli.progress import clock, show_progress
from softcpt.app.cli.show import say, show_faults, show_notes
from softcpt.core.errors import ConfigError, Fault

if TYPE_CHECKING:
    from softcpt.compare.estimate import Estimate
    from softcpt.compare.executor import Failure
    from softcpt.compare.results import Results
    from softcpt.compare.run import Request

_PAIR = re.compile(r"[a-z][a-z_]*=")

DEFAULT_METHODS = "zero-shot,coop-mt,coop-ca,softcpt-nata"
DEFAULT_SHOTS, QUICK_SHOTS = "1,2,4,8,16", "4"
DEFAULT_SEEDS, QUICK_SEEDS = "1,2,3", "1"
QUICK = {"views": "4"}
"""What ``--quick`` sets unless it is given: a quarter of the pictures."""

QUICK_TRAINED = {"epochs": "10"}
"""The same for methods that the training loop trains: a fifth of the steps. Heads are quick already."""

_FAILED = 5  # as for runs: the table is there, but not whole


@click.command(cls=Command, short_help="Compare methods on suites, shots and seeds, in one table.")
@click.argument("words", nargs=-1, required=True, metavar="SUITE... [KEY=VALUE]...")
@click.option(
    "--methods",
    metavar="A,B,C",
    help="Rows of the table: methods, with settings if need be, as in coop-ca:lr=0.02:context_length=4.  "
    f"[default: {DEFAULT_METHODS}]",
)
@click.option(
    "--reference",
    metavar="ROW[,ROW...]",
    help="Rows that all others are compared with, by their names in the table or as in --methods.  "
    "[default: coop-ca, coop-ca-joint, zero-shot or the first row]",
)
@click.option("--shots", metavar="N,N", help=f"Training images per class.  [default: {DEFAULT_SHOTS}]")
@click.option("--seeds", metavar="N,N", help=f"Of the runs, and of their splits.  [default: {DEFAULT_SEEDS}]")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the comparison; the same command goes on where it was stopped.",
)
@needed_backbone_option
@click.option(
    "--preset",
    type=click.Choice(["ablation", "controls", "rates", "published-table"]),
    help="The paper's ablations, controls of its gain, all methods at other rates, or the published table.",
)
@click.option("--quick", is_flag=True, help="A first look: 4 shots, one seed, 10 epochs, 4 views.")
@click.option(
    "--tune/--no-tune",
    default=False,
    show_default=True,
    help="Add rows whose settings are chosen on val: at most 12 trainings a cell.",
)
@click.option(
    "--resplit/--no-resplit",
    default=True,
    show_default=True,
    help="Every seed draws its own train, val and test parts, or one split for all.",
)
@click.option("--jobs", type=int, metavar="N", help="Cells at a time on this machine.  [default: one a core]")
@click.option(
    "--threads", type=int, default=1, show_default=True, metavar="N", help="Of each cell; part of its result."
)
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="local",
    help="Run the cells on a Ray cluster (softcpt[ray]): at an address, auto for the one this machine is in, "
    "or without either one of this machine's own; a word that follows is taken for the address.",
)
@click.option(
    "--gpus",
    type=float,
    metavar="X",
    help="Share of a GPU a cell takes on Ray.  [default: 0.25]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="What to compute on; auto takes the best there is.",
)
@skip_option()
@cache_folder_option()
@click.option("--dry-run", is_flag=True, help="Say what it would take, and stop.")
@click.option("--quiet", is_flag=True, help="Only the table; no progress, notes and hints.")
def compare(
    words: tuple[str, ...],
    methods: str | None,
    reference: str | None,
    shots: str | None,
    seeds: str | None,
    output: Path,
    backbone: str,
    preset: str | None,
    quick: bool,
    tune: bool,
    resplit: bool,
    jobs: int | None,
    threads: int,
    ray: str | None,
    gpus: float | None,
    device: str,
    skip_bad_images: bool,
    cache: Path | None,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Train methods on every SUITE at several shots and seeds, test each once, and say what differs.

    SUITE is a folder <task>/<class>/<image>, or a CSV manifest; several may be given. KEY=VALUE changes a
    setting of all methods that know it, such as epochs=20. Stop it whenever you like: the same command goes
    on, and with more seeds, shots or methods only what is missing runs.
    """
    suites = [Path(word) for word in words if not _PAIR.match(word)]
    from softcpt.compare.presets import PRESETS
    from softcpt.compare.rows import find_rows, parse_rows
    from softcpt.compare.run import Request, Stopped
    from softcpt.compare.run import compare as run_comparison
    from softcpt.engine.config import parse_pairs

    settings = parse_pairs([word for word in words if _PAIR.match(word)])
    if preset is not None and methods is not None:
        fault = Fault("--methods", f"the preset {preset} has its own rows", "leave one out")
        raise ConfigError(fault, about="the command line")
    rows = (
        PRESETS[preset].rows()
        if preset
        else parse_rows((DEFAULT_METHODS if methods is None else methods).split(","))
    )
    shots = shots or (QUICK_SHOTS if quick else PRESETS[preset].shots if preset else DEFAULT_SHOTS)
    seeds = seeds or (QUICK_SEEDS if quick else DEFAULT_SEEDS)
    request = Request(
        rows=rows,
        shots=_numbers("--shots", shots),
        seeds=_numbers("--seeds", seeds),
        settings=(dict(PRESETS[preset].settings) if preset else {}) | (QUICK if quick else {}) | settings,
        trained=QUICK_TRAINED if quick else {},
        tune=tune,
        resplit=resplit,
        jobs=jobs,
        threads=threads,
        device=device,
        ray=ray,
        gpus=gpus,
        cache=cache,
        skip_bad_images=skip_bad_images,
        quick=quick,
        preset=preset,
        references=[] if reference is None else find_rows(reference, rows),
    )

    def announce(estimate: Estimate) -> None:
        if not quiet:
            _say_estimate(estimate, request)
        if dry_run:
            raise Stopped

    try:
        with show_progress(quiet=quiet) as listener:
            results = run_comparison(
                suites,
                backbone,
                output,
                request,
                on_estimate=announce,
                on_progress=listener,
                on_failure=_say_failure,
            )
    except Stopped:
        return 0
    except KeyboardInterrupt:
        say(f"what is done is kept in {output}; the same command goes on from there")
        raise
    return _show(output, results, quiet=quiet)


def _numbers(where: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not word.isdecimal()]
    if wrong or not words:
        what = f"{text!r} is no list of numbers"
        raise ConfigError(Fault(where, what, "write for example 1,2,4"), about="the command line")
    return [int(word) for word in words]


def _say_estimate(estimate: Estimate, request: Request) -> None:
    trials = f" and {estimate.trials} trainings on val" if request.tune else ""
    todo = f"{estimate.cells} cells{trials} to run, {estimate.found} there already"
    images = f", {estimate.views:,} views of images to encode" if estimate.views else ""
    where = (
        "on Ray"
        if request.ray is not None
        else f"{clock(3600 * estimate.wall_hours)} with {estimate.jobs} at a time"
    )
    say(f"{todo}{images}: about {estimate.core_hours:.2f} core-hours, {where}")


def _say_failure(label: str, failure: Failure) -> None:
    show_faults(f"{label} failed; the others go on", failure.faults)
    if failure.details:
        say(failure.details.rstrip(), style="dim")


def _show(output: Path, results: Results, *, quiet: bool) -> int:
    from softcpt.compare.write import write_results

    write_results(output, results)
    click.echo((output / "table.md").read_text(encoding="utf-8"), nl=False)
    if not quiet:
        show_notes(list(results.notes), all_in=str(output / "table.md"))
        say(f"also there: {output}/results.json, results.csv, report.html", style="dim")
    if results.failed:
        say(
            f"{len(results.failed)} cells or trainings on val failed; the same command tries them again",
            style="red",
        )
        return _FAILED
    return 0
