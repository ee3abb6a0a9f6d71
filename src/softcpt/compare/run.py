"""Many runs compared: what is there is kept, what is missing is run, and the table is written anew."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.compare.estimate import Estimate, kind_of, seconds_of, to_measure
from softcpt.compare.executor import Executor, Failure, InProcess, Outcome, Processes, leave_if_imported
from softcpt.compare.features import missing_views, portions, wanted_views
from softcpt.compare.grid import Cell, Grid, Place
from softcpt.compare.identity import suite_digest
from softcpt.compare.on_ray import LOCAL, OnRay
from softcpt.compare.presets import PUBLISHED_TABLE
from softcpt.compare.published import check_names
from softcpt.compare.results import Results, gather
from softcpt.compare.rows import TUNED_AT_SHOTS, Row, Tuning, label_faults
from softcpt.compare.store import FEATURES, WORK, Kind, Store, open_store
from softcpt.compare.tune import choose, points_of, published_point, tries_faults
from softcpt.compare.work import Job, What, groups_of
from softcpt.core.errors import Collector, ConfigError, Fault, RunError, SoftCPTError, SuiteError
from softcpt.core.progress import OnProgress, Progress
from softcpt.data.record import Suite
from softcpt.data.split import split_suite
from softcpt.data.suite import load_suite
from softcpt.engine.cache_place import CacheChoice, cache_folder, open_cache
from softcpt.engine.prepare import resolve_device

logger = logging.getLogger("softcpt")

GPU_SHARE = 0.25
"""Of a cell on Ray: cached features and one text tower leave most of a GPU free."""


class Stopped(Exception):
    """Raised by whoever was told the estimate and wants no more than that."""


@dataclass(frozen=True)
class Request:
    """A comparison as it is asked for.

    Attributes:
        rows: methods with their settings.
        shots: training images per class.
        seeds: of the runs; each draws its own split where ``resplit``.
        settings: keys and values for all methods that know them.
        trained: the same for methods that the training loop trains, unless given.
        tune: add rows whose settings are chosen on val.
        resplit: every seed draws its own split.
        jobs: cells at a time on this machine; None for as many as it has cores for.
        threads: of each cell; part of its result.
        device: ``auto``, the best that this machine has, ``cpu``, ``cuda`` or ``mps``; where cells run on a
            Ray cluster, its nodes need to have what is named, and this machine need not.
        ray: None for this machine; ``local``, ``auto`` or an address for a Ray cluster.
        gpus: share of a GPU that a cell takes on Ray; None for a quarter.
        cache: folder of image features.
        skip_bad_images: leave out images that cannot be read.
        quick: what is asked for is a first look, and the table says so.
        preset: name of the preset the rows come from.
        references: rows that all others are compared with; without any, one is taken.
    """

    rows: Sequence[Row]
    shots: Sequence[int]
    seeds: Sequence[int]
    settings: Mapping[str, str] = field(default_factory=dict)
    trained: Mapping[str, str] = field(default_factory=dict)
    tune: bool = False
    resplit: bool = True
    jobs: int | None = None
    threads: int = 1
    device: str = "auto"
    ray: str | None = None
    gpus: float | None = None
    cache: CacheChoice = None
    skip_bad_images: bool = False
    quick: bool = False
    preset: str | None = None
    references: Sequence[Row] = ()

    def check(self) -> None:
        """Refuse numbers that cannot be, and choices that cannot be made.

        Raises:
            ConfigError: all of them.
        """
        faults = []
        for name, values, least in (("shots", self.shots, 1), ("seeds", self.seeds, 0)):
            if not values or len(set(values)) < len(values) or min(values) < least:
                what = f"{', '.join(map(str, values)) or 'none'}: not different numbers from {least} up"
                faults.append(Fault(f"--{name}", what, "write for example 1,2,4"))
        for name, value in (("jobs", self.jobs), ("threads", self.threads)):
            if value is not None and value < 1:
                faults.append(Fault(f"--{name}", f"{value} is too few", "give 1 or more"))
        if self.gpus is not None and not 0 < self.gpus <= 1:
            faults.append(
                Fault("--gpus", f"{self.gpus:g} is no share of a GPU", "give more than 0, at most 1")
            )
        if self.gpus is not None and self.ray is None:
            faults.append(Fault("--gpus", "is for cells on Ray", "give --ray as well, or leave it out"))
        if self.jobs is not None and self.ray is not None:
            what = "Ray runs as many cells at a time as it has room for"
            faults.append(Fault("--jobs", what, "leave it out"))
        if not self.rows:
            faults.append(Fault("--methods", "names no method"))
        faults += label_faults(self.rows)
        faults += [
            Fault("--reference", f"{row.label} is no row of this comparison", "name one that is")
            for row in self.references
            if row not in self.rows
        ]
        faults += tries_faults(self.rows, self.settings, tune=self.tune)
        if faults:
            raise ConfigError(faults, about="the options")


def compare(
    suites: Sequence[Suite | Path | str],
    backbone: Backbone | Path | str,
    output: Path | str,
    request: Request,
    *,
    on_estimate: Callable[[Estimate], None] | None = None,
    on_progress: OnProgress | None = None,
    on_failure: Callable[[str, Failure], None] | None = None,
) -> Results:
    """Run what is missing of a grid, and gather everything.

    Cells are kept in ``output`` one by one: stopped anywhere, the same call goes on; with more seeds, shots
    or methods only those run. Files are written by :func:`softcpt.compare.write.write_results`.

    Args:
        suites: loaded ones, folders or manifests.
        backbone: a loaded one or what :func:`softcpt.load_backbone` takes.
        output: folder of the comparison.
        request: what is compared.
        on_estimate: told what is left to do before it begins.
        on_progress: told how far it is.
        on_failure: told of cells that failed; the others go on.

    Raises:
        SoftCPTError: what is wrong with suites, options or backbone, before anything is trained.
        KeyboardInterrupt: after all processes have ended.
    """
    leave_if_imported()
    collector = Collector()
    collector.keep(request.check)
    places = [
        place
        for source in suites
        if (place := collector.keep(lambda source=source: _place(source, request))) is not None  # type: ignore[misc]
    ]
    if request.preset == PUBLISHED_TABLE and places:
        collector.keep(lambda: check_names([place.name for place in places]))
    if not suites:
        fault = Fault("SUITE", "none is named", "name a folder <task>/<class>/<image>, or a CSV manifest")
        collector.errors.append(ConfigError(fault, about="the command line"))
    devices = collector.keep(lambda: _devices(request))
    of_cells, here = devices or ("cpu", torch.device("cpu"))
    model = collector.keep(lambda: _model(backbone, here))
    with _threads(max(1, request.threads)):
        if places and model and not collector.errors:
            grid = Grid(
                places=places,
                rows=request.rows,
                shots=request.shots,
                seeds=request.seeds,
                backbone=model.name,
                weights=model.digest,
                device=of_cells,
                threads=request.threads,
                settings=request.settings,
                resplit=request.resplit,
                trained=request.trained,
            )
            collector.keep(grid.check)
            if not collector.errors:
                collector.keep(lambda: _check_test(grid))
            if request.tune and not collector.errors:
                collector.keep(lambda: _check_val(grid))
        collector.raise_any()
        assert model is not None  # what failed was raised
        with open_store(Path(output)) as store:
            return _Comparison(grid, model, store, request, on_progress, on_failure).run(on_estimate)


def _check_test(grid: Grid) -> None:
    """Refuse suites without test images: nothing could be compared on them.

    Raises:
        SuiteError: every suite of which that is so.
    """
    seeds = {cell.resolved.data.split_seed for cell in grid.cells(grid.rows[:1])}
    faults = [
        Fault(place.name, "has no test images to compare on", "give the suite some, or no parts of its own")
        for place in grid.places
        if any("test" not in split_suite(place.suite, seed=seed).parts for seed in seeds)
    ]
    if faults:
        raise SuiteError(faults, about="the comparison")


def _check_val(grid: Grid) -> None:
    """Refuse to choose on val where some training has no val images.

    Raises:
        SuiteError: every suite of which that is so.
    """
    tasks_with_val: dict[tuple[str, int], set[int]] = {}
    lacking: dict[str, None] = {}
    for cell in _tunable(grid):
        suite, seed = cell.place.suite, cell.resolved.data.split_seed
        known = tasks_with_val.get((cell.place.digest, seed))
        if known is None:
            parts = split_suite(suite, seed=seed).parts
            known = {r.task for r, part in zip(suite.records, parts, strict=True) if part == "val"}
            tasks_with_val[cell.place.digest, seed] = known
        if any(known.isdisjoint(group) for group in groups_of(suite, cell.row.together)):
            lacking[suite.name] = None
    if lacking:
        fix = "give the suite some, or --no-tune"
        faults = [Fault(name, "has no val images to choose settings by", fix) for name in lacking]
        raise SuiteError(faults, about="the comparison")


def _tunable(grid: Grid) -> Iterator[Cell]:
    """The cells whose settings are to be chosen, as published."""
    return grid.cells([row for row in grid.rows if len(points_of(row, grid.settings)) > 1])


def _place(source: Suite | Path | str, request: Request) -> Place:
    suite = (
        source if isinstance(source, Suite) else load_suite(source, skip_bad_images=request.skip_bad_images)
    )
    return Place(suite, suite_digest(suite))


def _devices(request: Request) -> tuple[str, torch.device]:
    """The type of device that cells run on, and this process's device.

    On a cluster its nodes need to have what is named, and this machine need not.

    Raises:
        ConfigError: cells run on this machine, and it has none of that type.
    """
    elsewhere = request.ray is not None and request.ray != LOCAL and request.device != "auto"
    try:
        here = resolve_device(request.device)
    except ConfigError:
        if not elsewhere:
            raise
        here = torch.device("cpu")
    return request.device if elsewhere else here.type, here


def _model(backbone: Backbone | Path | str, device: torch.device) -> Backbone:
    return backbone.to(device) if isinstance(backbone, Backbone) else load_backbone(backbone, device=device)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """This process computes like the cells do, so that their features are told by the same key."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Comparison:
    """One call of :func:`compare`, after everything was found to be in order."""

    def __init__(
        self,
        grid: Grid,
        model: Backbone,
        store: Store,
        request: Request,
        on_progress: OnProgress | None,
        on_failure: Callable[[str, Failure], None] | None,
    ) -> None:
        self.grid, self.model, self.store, self.request = grid, model, store, request
        self.on_progress, self.on_failure = on_progress, on_failure
        self.failures: dict[str, Failure] = {}
        self.blocked: dict[str, str] = {}
        self.jobs = request.jobs or _jobs(request, model)
        # A comparison without a cache would encode every image once a cell.
        self.cache = (cache_folder(request.cache) or store.folder / FEATURES).resolve()

    def run(self, on_estimate: Callable[[Estimate], None] | None) -> Results:
        cells = list(self.grid.cells())
        trials = self._trials() if self.request.tune else []
        lacking: list[Cell] = []
        executor = self._executor()
        try:
            missing = self._missing("cells", cells)
            # A trial with the published settings is the published row's own training.
            of_cells = {cell.key for cell in cells}
            lacking = [trial for trial in self._missing("trials", trials) if trial.key not in of_cells]
            self._prepare(executor, cells, trials, missing, lacking, on_estimate)
            self._work(executor, "cell", missing, "cells")
            if trials:
                self._work(executor, "trial", lacking, "choosing on val")
                tuned = self._tuned_cells()
                self._work(executor, "cell", self._missing("cells", tuned), "cells with chosen settings")
                cells += tuned
        finally:
            executor.close()
        return gather(
            self.grid, self.request, self.model, cells, lacking, self.blocked, self.store, self.failures
        )

    def _executor(self) -> Executor:
        if self.request.ray is not None:
            share = GPU_SHARE if self.request.gpus is None else self.request.gpus
            gpus = share if self.grid.device == "cuda" else 0.0
            return OnRay(self.request.ray, threads=self.grid.threads, gpus=gpus)
        return InProcess() if self.jobs == 1 else Processes(self.jobs, self.grid.threads)

    def _prepare(
        self,
        executor: Executor,
        cells: Sequence[Cell],
        trials: Sequence[Cell],
        missing: Sequence[Cell],
        lacking: Sequence[Cell],
        on_estimate: Callable[[Estimate], None] | None,
    ) -> None:
        """Measure, tell what it will take, and make the features that are not there."""
        ahead = [*missing, *lacking]
        measured = {}
        failures: list[tuple[str, Failure]] = []
        began = time.perf_counter()
        for job, outcome in self._each(
            executor, [self._job("cost", c) for c in to_measure(ahead)], "looking ahead"
        ):
            if isinstance(outcome, Failure):
                failures.append((job.label, outcome))
                continue
            cell = next(c for c in ahead if c.key == job.key)
            measured[kind_of(cell)] = (cell, outcome)
        if failures:
            raise _error_of(failures)
        logger.info("measured in %.0f s", time.perf_counter() - began)
        n_views, jobs = self._feature_jobs([*ahead])
        image_s = max((cost["image_s"] for _, cost in measured.values()), default=0.0)
        # Which cells have the chosen settings is not known yet.
        new_chosen = list(_tunable(self.grid)) if lacking else []
        seconds = seconds_of([*ahead, *new_chosen], measured) + n_views * image_s
        if on_estimate:
            on_estimate(
                Estimate(
                    cells=len(missing) + len(new_chosen),
                    trials=len(lacking),
                    found=len({cell.key for cell in [*cells, *trials]}) - len({c.key for c in ahead}),
                    views=n_views,
                    core_hours=seconds * self.grid.threads / 3600,
                    wall_hours=seconds / 3600 / self.jobs,
                    jobs=self.jobs,
                )
            )
        for job, outcome in self._each(executor, jobs, "image features"):
            if isinstance(outcome, Failure):
                raise _error_of([(job.label, outcome)])

    def _feature_jobs(self, cells: Sequence[Cell]) -> tuple[int, list[Job]]:
        jobs: list[Job] = []
        n_views = 0
        wanted = wanted_views(cells)
        with open_cache(self.cache) as cache:
            assert cache is not None  # a folder was named
            for place in self.grid.places:
                missing = wanted.get(place.digest, {})
                # Only a device of the cells' own type can tell what they would find.
                if self.model.device.type == self.grid.device:
                    missing = missing_views(missing, place, self.model, cache)
                n_views += sum(map(len, missing.values()))
                for n, ((precision, kind), views) in enumerate(portions(missing)):
                    name = f"features-{place.digest[:8]}-{precision}-{kind}-{n}"
                    job = Job(
                        **self._common("features", name, place),
                        label=f"{place.name}, images",
                        views=views,
                        precision=precision,
                        kind=kind,
                    )
                    jobs.append(job)
        return n_views, jobs

    def _missing(self, kind: Kind, cells: Sequence[Cell]) -> list[Cell]:
        """Those whose result is not there, each once."""
        return [
            cell
            for cell in {cell.key: cell for cell in cells}.values()
            if self.store.get(kind, cell.key, cell.identity) is None
        ]

    def _work(self, executor: Executor, what: What, cells: Sequence[Cell], stage: str) -> None:
        kind: Kind = "cells" if what == "cell" else "trials"
        for job, outcome in self._each(executor, [self._job(what, cell) for cell in cells], stage):
            if not isinstance(outcome, Failure):
                self.store.put(kind, job.key, outcome)
                continue
            self.failures[job.key] = outcome
            if self.on_failure:
                self.on_failure(job.label, outcome)

    def _each(self, executor: Executor, jobs: Sequence[Job], stage: str) -> Iterator[tuple[Job, Outcome]]:
        """Results as they come, with progress."""
        began = time.perf_counter()
        for done, (job, outcome) in enumerate(executor.each(jobs), start=1):
            if self.on_progress:
                left = (time.perf_counter() - began) / done * (len(jobs) - done)
                self.on_progress(Progress(stage, done, len(jobs), time_left_s=left))
            yield job, outcome

    def _job(self, what: What, cell: Cell) -> Job:
        return Job(
            **self._common(what, cell.key, cell.place),
            label=cell.label,
            settings=cell.settings,
            identity=cell.identity,
            together=cell.row.together,
        )

    def _common(self, what: What, key: str, place: Place) -> dict[str, Any]:
        on_ray = self.request.ray is not None
        return {
            "what": what,
            "key": key,
            "source": place.source,
            "suite": place.digest,
            "backbone": self.grid.backbone,
            "weights": self.grid.weights,
            "threads": self.grid.threads,
            "device": self.grid.device,
            "cache": str(self.cache),
            "work": None if on_ray else str((self.store.folder / WORK).resolve()),
            "skip_bad_images": self.request.skip_bad_images,
        }

    def _points_of(self, row: Row) -> list[dict[str, str]]:
        """What is tried of a row: nothing that is given."""
        return points_of(row, self.grid.settings)

    def _trials(self) -> list[Cell]:
        """Every training that helps to choose; below four shots also the four-shot ones."""
        return [
            trial
            for cell in _tunable(self.grid)
            for shots in {cell.shots, max(cell.shots, TUNED_AT_SHOTS)}
            for trial in self._points(cell, shots)
        ]

    def _points(self, cell: Cell, shots: int) -> list[Cell]:
        points = self._points_of(cell.row)
        return [self.grid.cell(cell.place, cell.row, shots, cell.seed, point) for point in points]

    def _tuned_cells(self) -> list[Cell]:
        """The cells with the settings that did best on val.

        Where some have fewer than four shots, a second row has those chosen at four shots there.
        """
        some_small = min(self.grid.shots) < TUNED_AT_SHOTS
        tuned = []
        for cell in _tunable(self.grid):
            at: list[tuple[Tuning, int]] = [("tuned", cell.shots)]
            if some_small:
                at.append(("tuned at 4", max(cell.shots, TUNED_AT_SHOTS)))
            for tuning, shots in at:
                trials = self._points(cell, shots)
                scores = [self._val_score(trial) for trial in trials]
                row = cell.row.tuned(tuning)
                if None in scores:
                    label = self.grid.cell(cell.place, row, cell.shots, cell.seed).label
                    n = scores.count(None)
                    self.blocked[label] = f"nothing was chosen: {n} of {len(trials)} trainings on val failed"
                    continue
                point = self._chosen(cell, [score for score in scores if score is not None])
                tuned.append(self.grid.cell(cell.place, row, cell.shots, cell.seed, point))
        return tuned

    def _val_score(self, trial: Cell) -> float | None:
        """Of a training that was to help choose, or None where it failed."""
        found = self.store.get("trials", trial.key, trial.identity) or self.store.get(
            "cells", trial.key, trial.identity
        )
        return None if found is None else float(found["val_score"])

    def _chosen(self, cell: Cell, scores: Sequence[float]) -> dict[str, str]:
        """The best point on the val samples of a cell."""
        points = self._points_of(cell.row)
        values = {key: entry["value"] for key, entry in cell.resolved.stored().items()}
        return points[choose(scores, published_point(points, values))]


def _jobs(request: Request, model: Backbone) -> int:
    if model.device.type != "cpu":
        return 1
    return max(1, (os.cpu_count() or 1) // request.threads)


def _error_of(failures: Sequence[tuple[str, Failure]]) -> SoftCPTError:
    """Failures before the first cell stop everything: they would be those of many cells."""
    kinds = {kind.exit_code: kind for kind in (ConfigError, SuiteError, RunError)}
    for _, failure in failures:
        if failure.details:
            logger.error(failure.details)
    faults = [
        replace(fault, where=f"{label}: {fault.where}")
        for label, failure in failures
        for fault in failure.faults
    ]
    return kinds.get(failures[0][1].exit_code, RunError)(faults, about="the comparison")
