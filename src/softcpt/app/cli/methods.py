"""``softcpt methods``: what can be trained, every key with its default and meaning; checks of a method."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import click

from softcpt.app.cli.options import Command, json_option, pairs_argument
from softcpt.app.cli.show import new_table, say, show_table
from softcpt.core.errors import ConfigError, Fault

logger = logging.getLogger("softcpt")

_OPTIONS = frozenset({"method", "recipe", "shots", "seed", "backbone", "device"})
"""Settings that ``softcpt train`` takes as options of their own."""

Keys = dict[str, dict[str, object]]


@click.command(cls=Command, short_help="List the methods and their keys, or check one.")
@pairs_argument()
@click.option(
    "--check", "checked", metavar="KEY", help="Try a method, also one of your own, on drawn pictures."
)
@json_option("One JSON list instead of the tables.")
def methods(pairs: tuple[str, ...], checked: str | None, as_json: bool) -> None:
    """List the methods, and the keys of key=value with their defaults.

    With --check KEY, run everything that a method has to keep to, a few training steps each, with these
    settings. Ends with 2 if anything fails.
    """
    if checked is not None:
        _check(checked, pairs, as_json)
        return
    if pairs:
        fault = Fault(repr(pairs[0]), "settings are for --check", "leave it out, or add --check KEY")
        raise ConfigError(fault, about="the command line")
    from rich.text import Text

    from softcpt.methods.registry import list_methods, package_of

    known = list_methods()
    keys = {method.key: _listed_keys(method.key) for method in known}
    packages = {method.key: package_of(method.key) for method in known}
    if as_json:
        listed = [
            {
                "method": method.key,
                "label": method.label,
                "summary": method.summary,
                "trains": method.trains,
                "package": None if (package := packages[method.key]) is None else asdict(package),
                "keys": keys[method.key],
            }
            for method in known
        ]
        click.echo(json.dumps(listed, indent=1))
        return
    table = new_table("method", "what it is")
    for method in known:
        package = packages[method.key]
        where = "" if package is None else f" ({package})"
        table.add_row(method.key, Text(f"{method.label}: {method.summary}{where}"))
    show_table(table)
    table = new_table("key", "default", "meaning", "known to")
    for key, default, about, owners in _rows(keys):
        table.add_row(key, Text(default), Text(about), _owners(owners, list(keys)))
    show_table(table)


def _check(key: str, pairs: Sequence[str], as_json: bool) -> None:
    """Run all checks of a method and show what each found.

    Raises:
        ConfigError: there is no such method, it does not take the settings, or a check failed.
    """
    from rich.text import Text

    from softcpt.engine.config import parse_pairs
    from softcpt.engine.method_checks import check_method
    from softcpt.methods.registry import get_method

    method, settings = get_method(key), parse_pairs(pairs)
    outcomes = []
    for outcome in check_method(method, settings):
        say(f"{outcome.name} ... {outcome.result}", style="dim")
        outcomes.append(outcome)
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=1, ensure_ascii=False))
    else:
        table = new_table("check", "result", "what it asks for, or why")
        for outcome in outcomes:
            table.add_row(outcome.name, outcome.result, Text(outcome.why or outcome.about))
        show_table(table)
    faults = [Fault(o.name, o.why, o.about) for o in outcomes if o.result == "failed"]
    if faults:
        raise ConfigError(faults, about=f"the method {key}")


def _listed_keys(method: str) -> Keys:
    """As :func:`_keys`; none, with a warning, of a method of another package whose defaults are refused."""
    from softcpt.methods.registry import package_of

    try:
        return _keys(method)
    except ConfigError as error:
        if package_of(method) is None:
            raise
        logger.warning(
            "%s: its defaults are refused; see softcpt methods --check %s: %s", method, method, error
        )
        return {}


def _keys(method: str) -> Keys:
    """Every key of a method: its default under recipe paper, and what it means."""
    from softcpt.engine.config import keys_of, resolve

    settings = resolve({"method": method})
    about = keys_of(settings.method)
    return {
        key: {"default": entry["value"], "about": about[key]}
        for key, entry in settings.stored().items()
        if key not in _OPTIONS
    }


def _rows(keys: Mapping[str, Keys]) -> list[tuple[str, str, str, list[str]]]:
    """Key, default, meaning and the methods that know it so; a default that differs is a row of its own."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for method, own in keys.items():
        for key, entry in own.items():
            default = entry["default"]
            shown = "" if default is None else str(default)
            rows.setdefault((key, shown, str(entry["about"])), []).append(method)
    return [(*row, owners) for row, owners in rows.items()]


def _owners(owners: Sequence[str], every: Sequence[str]) -> str:
    """Who knows a key, in few words; methods whose prompts the loop trains are one group."""
    from softcpt.methods.registry import list_methods

    others = [method for method in every if method not in owners]
    if not others:
        return "all"
    if len(others) <= 3:
        return f"all but {' '.join(others)}"
    trained = [method.key for method in list_methods() if method.trains]
    missing = [key for key in trained if key not in owners]
    if len(trained) < 2 * len(missing):
        return " ".join(owners)
    beside = [key for key in owners if key not in trained]
    but = ["but", *missing] if missing else []
    return " ".join(["methods that train prompts", *but, *(["and", *beside] if beside else [])])
