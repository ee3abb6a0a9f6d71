"""The cells of a comparison: suite x row x shots x seed, each with all that decides about its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from softcpt.compare.identity import cell_identity, key_of
from softcpt.compare.rows import Row, overrides_for, uses_shots
from softcpt.compare.tune import combinations
from softcpt.core.errors import Collector, ConfigError, Fault, nearest
from softcpt.data.record import Suite
from softcpt.engine.config import Settings, keys_of, resolve
from softcpt.methods.registry import get_method

OPTIONS = {
    "method": "--methods",
    "shots": "--shots",
    "seed": "--seeds",
    "backbone": "--backbone",
    "device": "--device",
}
"""Keys that are options of a comparison and no settings of its runs -> how they are given."""

SPLITS = ("split", "split_seed")
"""Keys that decide which images are for training: the same for all rows."""

ALL_SUITES = "all suites"
"""What tables call the mean over suites."""


@dataclass(frozen=True)
class Place:
    """A suite of the comparison.

    Attributes:
        suite: read and checked.
        digest: of its content.
    """

    suite: Suite
    digest: str

    @property
    def name(self) -> str:
        """The suite's."""
        return self.suite.name

    @property
    def source(self) -> str:
        """Where any process of this machine finds it."""
        return str(self.suite.source.resolve())


@dataclass(frozen=True)
class Cell:
    """One training and its test.

    Attributes:
        place: the suite.
        row: the method.
        shots: training images per class.
        seed: of the run, and of its split.
        settings: keys and values to run with.
        resolved: the same with all defaults.
        identity: all that decides about the result.
        chosen: of the settings, those that are tried or were chosen on val.
    """

    place: Place
    row: Row
    shots: int
    seed: int
    settings: dict[str, str]
    resolved: Settings = field(repr=False)
    identity: dict[str, Any] = field(repr=False)
    chosen: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Name of its file."""
        return key_of(self.identity)

    @property
    def label(self) -> str:
        """For people."""
        shots = f"{self.shots} shot{'s' if self.shots != 1 else ''}"
        chosen = "".join(f", {key}={value}" for key, value in self.chosen.items())
        return f"{self.place.name}, {self.row.label}, {shots}, seed {self.seed}{chosen}"


@dataclass(frozen=True)
class Grid:
    """What is compared on what.

    Attributes:
        places: suites.
        rows: methods with their settings; those whose settings are chosen come from these.
        shots: training images per class.
        seeds: of the runs.
        backbone: where any process of this machine finds it.
        weights: digest of it.
        device: type of device.
        threads: of each cell.
        settings: keys and values for all methods that know them.
        trained: keys and values for methods that the training loop trains, where nothing else is given.
        resplit: every seed draws its own split.
    """

    places: Sequence[Place]
    rows: Sequence[Row]
    shots: Sequence[int]
    seeds: Sequence[int]
    backbone: str
    weights: str
    device: str
    threads: int
    settings: Mapping[str, str]
    resplit: bool
    trained: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Resolve every row's settings once.

        Raises:
            ConfigError: every fault of all of them.
        """
        collector = Collector()
        faults = [
            Fault(key, "is an option of the comparison", f"give it as {OPTIONS[key]}")
            for key in self.settings
            if key in OPTIONS
        ]
        if self.resplit and "split_seed" in self.settings:
            what = "every seed draws its own split"
            faults.append(Fault("split_seed", what, "leave it out, or add --no-resplit"))
        if self.settings.get("split") == "all":
            faults.append(Fault("split", "all leaves no test images to compare on", "leave it out"))
        of_rows = [(row, key) for row in self.rows for key in (*dict(row.settings), *dict(row.tries))]
        faults += [
            Fault(f"{row.label}, {key}", "is an option of the comparison", f"give it as {OPTIONS[key]}")
            for row, key in of_rows
            if key in OPTIONS
        ]
        faults += [
            Fault(f"{row.label}, {key}", "decides which images a row sees", f"write {key}=... for all rows")
            for row, key in of_rows
            if key in SPLITS
        ]
        known = {key for row in self.rows for key in keys_of(get_method(row.method))}
        faults += [
            Fault(key, "no method of this comparison has such an option", nearest(key, known))
            for key in self.settings
            if key not in known
        ]
        names = [place.name for place in self.places]
        faults += [
            Fault(name, "two suites have this name", "rename one in its suite.yaml")
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if len(names) > 1 and ALL_SUITES in names:
            faults.append(Fault(ALL_SUITES, "is what tables call the mean", "rename it in its suite.yaml"))
        faults += [
            Fault(f"{row.label}, {key}", "learns of no images: val has nothing to choose", "name one value")
            for row in self.rows
            if not uses_shots(get_method(row.method))
            for key in dict(row.tries)
        ]
        if faults:
            collector.errors.append(ConfigError(faults, about="the options"))
        else:
            draws: dict[str, list[str]] = {}
            for row in self.rows:
                for point in ({}, *combinations(dict(row.tries))) if row.tries else ({},):
                    collector.keep(
                        lambda row=row, point=point: self.cell(  # type: ignore[misc]
                            self.places[0], row, self.shots[0], self.seeds[0], point
                        )
                    )
            if not collector.errors:
                for row in self.rows:
                    draw = self.cell(self.places[0], row, self.shots[0], self.seeds[0]).resolved.data.draw
                    if uses_shots(get_method(row.method)):
                        draws.setdefault(draw, []).append(row.label)
            together = [row.label for row in self.rows if row.together is not None]
            if together and "published" in draws:
                what = f"draws other images where fewer tasks are trained together ({'; '.join(together)})"
                fault = Fault("draw=published", what, "write draw=product")
                collector.errors.append(ConfigError(fault, about="the options"))
            if len(draws) > 1:
                what = "; ".join(f"{draw}: {', '.join(labels)}" for draw, labels in draws.items())
                fault = Fault(
                    "draw",
                    f"rows would see different images ({what})",
                    "write draw=product, or draw=published, for all",
                )
                collector.errors.append(ConfigError(fault, about="the options"))
        collector.raise_any()

    def cell(
        self, place: Place, row: Row, shots: int, seed: int, chosen: Mapping[str, str] | None = None
    ) -> Cell:
        """One cell.

        Args:
            place: suite.
            row: method.
            shots: asked for; a method that learns from no images has the same cell for all.
            seed: of the run.
            chosen: settings that were found on val.
        """
        entry = get_method(row.method)
        settings = dict(self.trained) if entry.trains else {}
        settings |= overrides_for(row, self.settings) | dict(chosen or {})
        drawn = uses_shots(entry)
        settings |= {"shots": str(shots if drawn else 1), "seed": str(seed if drawn else 1)}
        settings["device"] = self.device
        if self.resplit:
            settings["split_seed"] = str(seed)
        resolved = resolve(settings, given_by="the comparison")
        identity = cell_identity(
            suite=place.digest,
            backbone=self.weights,
            settings=resolved,
            together=row.together,
            threads=self.threads,
            device=self.device,
        )
        return Cell(place, row, shots, seed, settings, resolved, identity, dict(chosen or {}))

    def cells(self, rows: Sequence[Row] | None = None) -> Iterator[Cell]:
        """All cells, seed after seed, so that a table begun is a table with fewer seeds.

        Args:
            rows: those meant; None for all.
        """
        for seed in self.seeds:
            for shots in self.shots:
                for place in self.places:
                    for row in self.rows if rows is None else rows:
                        yield self.cell(place, row, shots, seed)
