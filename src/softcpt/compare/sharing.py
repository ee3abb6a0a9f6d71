"""Which rows share, and which row trains each task alone in the same way: what "does sharing help?" compares.

Rows that share            Method.shares, unless their settings or training each task alone take it away
Rows that train alone      rows of class prompts, or of the sharing row's own options, that do not share
Rows alike                 both have the same settings of :data:`LIKE`; of several, most settings the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from softcpt.compare.rows import Row, overrides_for
from softcpt.compare.tune import points_of
from softcpt.core.errors import ConfigError
from softcpt.engine.config import Settings, resolve
from softcpt.methods.coop import ContextConfig
from softcpt.methods.prompts import PromptConfig
from softcpt.methods.registry import get_method

HEADS = ("head", "head_views", "head_tune")
LIKE = (
    *HEADS,
    "init_words",
    "optimizer",
    "epochs",
    "keep",
    "batch_size",
    "repeated_steps",
    "views",
    "context_length",
    "position",
    "init_scale",
    "text_pull",
    "logit_pull",
)
"""Settings that would make a difference of their own. A rate is none: methods need different ones."""

SHARED = ("softcpt-nata", "softcpt-nats", "softcpt-cata", "coop-mt")
"""The first of these that is there speaks for sharing, else the first row that shares."""
ALONE = ("coop-ca", "coop-ca-joint", "softcpt-nata-separate")
"""Of rows that are equally alike, the first of these is taken."""

STEPS = "joint_steps"
"""What gives a row that trains tasks alone as many steps as the one that shares has."""

_PROMPTS = ("coop-ca", "coop-cs")
"""Methods that a row to add may be of."""
_ABSENT = {"head": "none", "text_pull": 0.0, "logit_pull": 0.0}
"""What a method does that has no such key."""


class Rows:
    """The rows of a comparison with their settings.

    Args:
        rows: in the order of tables.
        given: keys and values for all methods that know them.
        trained: the same for methods that the training loop trains, where nothing else is given.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        given: Mapping[str, str] | None = None,
        trained: Mapping[str, str] | None = None,
    ) -> None:
        self.rows = rows
        self._given, self._trained = dict(given or {}), dict(trained or {})
        self._settings: dict[Row, Settings] = {}

    def settings(self, row: Row) -> Settings:
        """All settings of a row's runs, but for what is chosen on val."""
        plain = row.tuned("published")
        if plain not in self._settings:
            own = dict(self._trained) if get_method(row.method).trains else {}
            self._settings[plain] = resolve(own | overrides_for(row, self._given))
        return self._settings[plain]

    def shares(self, row: Row) -> bool:
        """Whether what a row learns of one task depends on the other tasks' images."""
        return get_method(row.method).shares and row.together != 1 and self.settings(row).own.is_shared()

    def is_alone(self, row: Row, shared: Row) -> bool:
        """Whether a row trains what another one shares, but each task by itself."""
        entry, own = get_method(row.method), self.settings(row).own
        other = get_method(shared.method)
        return (
            entry.trains == other.trains
            and not self.shares(row)
            and (isinstance(own, PromptConfig) or type(own) is other.config)
        )

    def are_alike(self, row: Row, other: Row) -> bool:
        """Whether the settings agree that would make a difference of their own."""
        mine, others = self._like(row), self._like(other)
        return all(mine[key] == others[key] for key in LIKE if key in mine and key in others)

    def pair(self) -> tuple[Row | None, Row | None]:
        """The row that speaks for sharing, and the one most like it that trains tasks alone; tuned alike."""
        for tuning in ("tuned", "published"):
            at = [row for row in self.rows if row.tuning == tuning]
            for shared in self._sharing(at):
                alone = [row for row in at if self.is_alone(row, shared) and self.are_alike(row, shared)]
                if alone:
                    return shared, min(alone, key=lambda row: self._away(row, shared))
        return None, None

    def to_add(self) -> tuple[Row | None, Row | None]:
        """Where no two rows can tell: a row that shares, and the one to add that would be like it."""
        for shared in self._sharing([row for row in self.rows if row.tuning == "published"]):
            for method in _PROMPTS:
                row = self._like_it(method, shared)
                if row is not None:
                    return shared, row
            return shared, None
        return None, None

    def _sharing(self, rows: Sequence[Row]) -> list[Row]:
        """Those that share over all tasks, the one that is meant first."""
        sharing = [row for row in rows if row.together is None and self.shares(row)]
        return sorted(sharing, key=lambda row: _place(row, SHARED))

    def _like_it(self, method: str, shared: Row) -> Row | None:
        """A row of a method with the other row's settings, where it takes them."""
        wanted, row = self._like(shared), Row(method)
        try:
            for key in LIKE:  # one by one: a head has settings only once it is there
                own = self._like(row)
                if key in own and key in wanted and own[key] != wanted[key]:
                    row = _with(row, key, wanted[key])
            fits = self.is_alone(row, shared) and self.are_alike(row, shared)
        except ConfigError:
            return None
        return row if fits else None

    def _like(self, row: Row) -> dict[str, tuple[str, ...]]:
        """Key -> the value, or all that are tried on val; only of what has an effect."""
        settings = self.settings(row)
        values = _ABSENT | _flat(settings)
        if values["head"] == "none":
            values = {key: value for key, value in values.items() if key not in HEADS[1:]}
        if isinstance(settings.own, ContextConfig):
            if settings.own.init_words is not None:
                values["context_length"] = "the words'"
        else:
            values.pop("init_words", None)  # those of a task's text
        found: dict[str, tuple[str, ...]] = {
            key: (str(value),) for key, value in values.items() if key in LIKE
        }
        if row.tuning != "published" or row.tries:
            points = points_of(row, self._given)
            for key in {key for point in points for key in point} & set(LIKE):
                found[key] = tuple(dict.fromkeys(point.get(key, "") for point in points))
        return found

    def _away(self, row: Row, shared: Row) -> tuple[int, bool, int]:
        """How many settings differ, whether the number of steps does, and the place among equals."""
        mine, others = _flat(self.settings(row)), _flat(self.settings(shared))
        differing = sum(
            key not in mine or mine[key] != value for key, value in others.items() if key != STEPS
        )
        return differing, mine.get(STEPS) is not True, _place(row, ALONE)


def _flat(settings: Settings) -> dict[str, Any]:
    return {key: entry["value"] for key, entry in settings.stored().items() if key != "method"}


def _with(row: Row, key: str, values: Sequence[str]) -> Row:
    if len(values) == 1:
        return replace(row, settings=tuple(sorted([*row.settings, (key, values[0])])))
    return replace(row, tries=tuple(sorted([*row.tries, (key, tuple(values))])))


def _place(row: Row, keys: Sequence[str]) -> int:
    return keys.index(row.method) if row.method in keys else len(keys)
