"""``softcpt methods``: what can be trained, and every key with its default and meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import click

from softcpt.app.cli.options import Command, json_option
from softcpt.app.cli.show import new_table, show_table

_OPTIONS = frozenset({"method", "recipe", "shots", "seed", "backbone", "device"})
"""Settings that ``softcpt train`` takes as options of their own."""

Keys = dict[str, dict[str, object]]


@click.command(cls=Command, short_help="List the methods and their keys.")
@json_option("One JSON list instead of the tables.")
def methods(as_json: bool) -> None:
    """List the methods, and the keys of key=value with their defaults."""
    from softcpt.methods.registry import list_methods

    known = list_methods()
    keys = {method.key: _keys(method.key) for method in known}
    if as_json:
        listed = [
            {
                "method": method.key,
                "label": method.label,
                "summary": method.summary,
                "trains": method.trains,
                "keys": keys[method.key],
            }
            for method in known
        ]
        click.echo(json.dumps(listed, indent=1))
        return
    table = new_table("method", "what it is")
    for method in known:
        table.add_row(method.key, f"{method.label}: {method.summary}")
    show_table(table)
    table = new_table("key", "default", "meaning", "known to")
    for key, default, about, owners in _rows(keys):
        table.add_row(key, default, about, _owners(owners, list(keys)))
    show_table(table)


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
    if len(others) == 1:
        return f"all but {others[0]}"
    trained = [method.key for method in list_methods() if method.trains]
    if not set(trained) <= set(owners):
        return " ".join(owners)
    beside = [method for method in owners if method not in trained]
    return " ".join(["methods that train prompts", *(["and"] if beside else []), *beside])
