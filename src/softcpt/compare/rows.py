"""The rows of a comparison: methods, each with settings of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from softcpt.core.errors import Collector, ConfigError, Fault
from softcpt.engine.config import keys_of, parse_pairs
from softcpt.methods.base import Method
from softcpt.methods.registry import get_method

Tuning = Literal["published", "tuned", "tuned at 4"]
"""Settings as published; chosen on val; chosen on the val samples of the 4-shot cell with the same seed."""

TUNED_AT_SHOTS = 4
"""Below these shots there are too few val images to choose by."""

ALTERNATIVES = "/"
"""Between values of which one is chosen on val."""

_SAID = {"published": "", "tuned": "tuned on val", "tuned at 4": f"tuned at {TUNED_AT_SHOTS} shots"}


@dataclass(frozen=True)
class Row:
    """A method with settings of its own.

    Attributes:
        method: key.
        settings: what differs from the method's defaults.
        name: how tables call it, where the method's label and settings do not say it well.
        tuning: where other settings come from.
        together: tasks that are trained together, in groups of so many in the suite's order; None for all.
        tries: keys with the values that are tried on val, in place of what the method's table of tuning says.
    """

    method: str
    settings: tuple[tuple[str, str], ...] = ()
    name: str = ""
    tuning: Tuning = "published"
    together: int | None = None
    tries: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def label(self) -> str:
        """Unique in a table."""
        words = [self.name or self._described(), _SAID[self.tuning]]
        return ", ".join(word for word in words if word)

    def _described(self) -> str:
        words = [f"{key}={value}" for key, value in self.settings]
        words += [f"{key}={ALTERNATIVES.join(values)}" for key, values in self.tries]
        if self.together is not None:
            words.append(f"{self.together} tasks together" if self.together > 1 else "each task alone")
        return ", ".join([get_method(self.method).label, *words])

    def tuned(self, tuning: Tuning) -> Row:
        """The same with another origin of settings."""
        return replace(self, tuning=tuning)


def uses_shots(method: Method) -> bool:
    """Whether training images change what a method scores; zero-shot is the same at any number of them."""
    # Methods may be fitted to images in a way of their own, without the training loop.
    return bool(getattr(method, "uses_images", method.trains))


def parse_rows(words: Sequence[str]) -> list[Row]:
    """Rows as a command line names them: ``softcpt-nata``, or ``coop-ca:lr=0.02:context_length=4``.

    Of ``lr=0.002/0.02`` one value is chosen on val; without tuning the key keeps its default.

    Raises:
        ConfigError: every method there is not, every word that is no setting, every row named twice.
    """
    collector = Collector()
    rows: list[Row] = []
    for word in words:
        row = collector.keep(lambda word=word: _parse_row(word))  # type: ignore[misc]
        if row in rows:
            fault = Fault("--methods", f"{word!r} is named twice", "leave one out")
            collector.errors.append(ConfigError(fault, about="the options"))
        elif row is not None:
            rows.append(row)
    if not words:
        fault = Fault("--methods", "names no method", "write for example zero-shot,coop-ca,softcpt-nata")
        collector.errors.append(ConfigError(fault, about="the options"))
    collector.raise_any()
    return rows


def _parse_row(word: str) -> Row:
    key, *pairs = word.strip().split(":")
    get_method(key)
    given = sorted(parse_pairs(pairs).items())
    return Row(
        key,
        tuple((name, value) for name, value in given if ALTERNATIVES not in value),
        tries=tuple((n, tuple(v.split(ALTERNATIVES))) for n, v in given if ALTERNATIVES in v),
    )


def row_words(row: Row) -> str:
    """A row as a command line would name it; which tasks are trained together only a preset says."""
    words = [row.method, *(f"{key}={value}" for key, value in row.settings)]
    words += [f"{key}={ALTERNATIVES.join(values)}" for key, values in row.tries]
    return ":".join(words)


def find_rows(text: str, rows: Sequence[Row]) -> list[Row]:
    """Rows by their labels, or as :func:`parse_rows` reads them, with commas between.

    Raises:
        ConfigError: every word that names none of the rows, with what there is.
    """
    known = {row.label: row for row in rows}
    words = text.split(",")
    found: list[Row] = []
    strangers: list[str] = []
    while words:
        # Labels have commas too: the longest that fits is meant.
        for n in range(len(words), 0, -1):
            word = ",".join(words[:n]).strip()
            row = known.get(word) or _same_row(word, rows)
            if row is not None:
                break
        if row is None:
            strangers.append(word)
        elif row not in found:
            found.append(row)
        words = words[n:]
    if strangers:
        fix = f"write one of: {'; '.join(known)}"
        faults = [Fault("--reference", f"{word!r} is no row of this comparison", fix) for word in strangers]
        raise ConfigError(faults, about="the options")
    return found


def _same_row(word: str, rows: Sequence[Row]) -> Row | None:
    try:
        meant = _parse_row(word)
    except ConfigError:
        return None
    return next((row for row in rows if replace(row, name="") == meant), None)


def label_faults(rows: Sequence[Row]) -> list[Fault]:
    """Labels that two rows have: results are kept and shown under them."""
    labels = [row.label for row in rows]
    return [
        Fault(
            label,
            f"{labels.count(label)} rows have this label",
            "leave one out, or give its method another label",
        )
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]


def overrides_for(row: Row, settings: Mapping[str, str]) -> dict[str, str]:
    """Keys and values of a row's runs: those given for all methods as far as it knows them, and its own."""
    keys = keys_of(get_method(row.method))
    shared = {key: value for key, value in settings.items() if key in keys}
    return shared | {"method": row.method} | dict(row.settings)
