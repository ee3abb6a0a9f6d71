"""``softcpt cache``: the image features that runs have left on disk, shown, cleared or made fewer.

Imports neither torch nor a backbone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from softcpt.app.cli.options import Group, cache_folder_option, json_option
from softcpt.app.cli.show import new_table, say, show_table
from softcpt.core.errors import ConfigError, Fault, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from softcpt.engine.feature_cache import FeatureCache, Kept

DAY_S = 86400.0
SHORT = 12
"""Characters of a digest that are shown."""
SHORTEST = 4
"""Characters of a digest that name a backbone."""


@click.group(
    cls=Group,
    invoke_without_command=True,
    short_help="Show or clear the image features kept on disk.",
)
@cache_folder_option()
@json_option("One JSON object instead of the table.")
@click.pass_context
def cache(ctx: click.Context, cache: Path | None, as_json: bool) -> None:
    """Show what is kept of image features: where, how much, and of which backbones.

    They are kept so that every method, shot count and seed on the same images finds them again. Removing them
    costs time, never results.
    """
    ctx.obj = cache
    if ctx.invoked_subcommand is not None:
        if as_json:
            fault = Fault("--json", f"has no use for {ctx.invoked_subcommand}", "leave it out")
            raise ConfigError(fault, about="the command line")
        return
    from softcpt.engine.cache_place import limit_bytes, show_size

    store = _store(cache)
    if store is None:
        _show_none(as_json)
        return
    with store:
        kept, on_disk, limit = store.contents(), store.bytes_on_disk(), limit_bytes()
    if as_json:
        shown = {"folder": str(store.folder), "bytes": on_disk, "limit_bytes": limit}
        click.echo(json.dumps({**shown, "backbones": [asdict(row) for row in kept]}, indent=1))
        return
    click.echo(f"{store.folder}: {show_size(on_disk)} of at most {show_size(limit)}")
    if kept:
        show_table(_table(kept))


@cache.command(short_help="Remove image features.")
@cache_folder_option()
@click.option("--backbone", metavar="B", help="Only of this backbone: its name, or how its digest begins.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Only of images that were not used for so long.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def clear(
    above: Path | None, cache: Path | None, backbone: str | None, older_than: float | None, yes: bool
) -> None:
    """Remove what is kept, or a part of it."""
    from softcpt.engine.cache_place import show_size

    store = _store(cache or above)
    if store is None or not store.bytes_on_disk():
        say("there is nothing to remove")
        return
    chosen = None if backbone is None else _of_backbone(store.contents(), backbone)
    before = store.bytes_on_disk()
    what = "everything in" if backbone is None and older_than is None else "a part of"
    if not yes and not _agreed(f"Remove {what} {store.folder} ({show_size(before)})?"):
        say("nothing was removed")
        return
    with store:
        store.clear(chosen, None if older_than is None else time.time() - older_than * DAY_S)
    _say_removed(store, before)


@cache.command(short_help="Remove the image features used least recently.")
@cache_folder_option()
@click.option("--to", required=True, metavar="SIZE", help="What may stay, such as 500MB or 2GB.")
@click.pass_obj
def shrink(above: Path | None, cache: Path | None, to: str) -> None:
    """Remove what was not used for the longest time, until no more than SIZE is left."""
    from softcpt.engine.cache_place import parse_size

    most = parse_size(to, where="--to")
    store = _store(cache or above)
    if store is None:
        say("there is nothing to remove")
        return
    before = store.bytes_on_disk()
    with store:
        store.shrink(most)
    _say_removed(store, before)


def _store(folder: Path | None) -> FeatureCache | None:
    from softcpt.engine.cache_place import cache_folder, limit_bytes
    from softcpt.engine.feature_cache import FeatureCache

    chosen = cache_folder(folder)
    return None if chosen is None else FeatureCache(chosen, limit_bytes())


def _say_removed(store: FeatureCache, before: int) -> None:
    from softcpt.engine.cache_place import show_size

    left = store.bytes_on_disk()
    say(f"{show_size(max(0, before - left))} removed, {show_size(left)} left")


def _show_none(as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"folder": None, "bytes": 0, "limit_bytes": 0, "backbones": []}, indent=1))
    else:
        click.echo("SOFTCPT_CACHE is off: nothing is kept")


def _table(kept: Sequence[Kept]) -> Table:
    from softcpt.engine.cache_place import show_size

    numbers = ("px", "images", "entries", "size")
    table = new_table("backbone", "digest", "precision", "device", *numbers, "last used", numbers=numbers)
    for row in kept:
        table.add_row(
            row.backbone,
            row.digest[:SHORT],
            row.precision,
            row.device,
            str(row.size_px),
            str(row.images),
            str(row.entries),
            show_size(row.feature_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.last_used)),
        )
    return table


def _of_backbone(kept: Sequence[Kept], asked: str) -> list[Kept]:
    """Those of a name, or whose digest begins so.

    Raises:
        ConfigError: there are none.
    """
    is_digest = len(asked) >= SHORTEST
    found = [
        row for row in kept if row.backbone == asked or (is_digest and row.digest.startswith(asked.lower()))
    ]
    if not found:
        known = sorted({row.backbone for row in kept})
        fault = Fault("--backbone", f"nothing is kept of {asked!r}", nearest(asked, known))
        raise ConfigError(fault, about="the command line")
    return found


def _agreed(question: str) -> bool:
    """What the user says.

    Raises:
        ConfigError: there is nobody to ask.
    """
    if not sys.stdin.isatty():
        fault = Fault("--yes", "is needed where nobody can be asked", "add --yes")
        raise ConfigError(fault, about="the command line")
    return click.confirm(question, err=True)
