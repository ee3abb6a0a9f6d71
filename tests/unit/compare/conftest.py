"""A drawn suite and a toy backbone, and comparisons of a second or two."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from softcpt.clip.backbone import Backbone, load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.compare.grid import Grid, Place
from softcpt.compare.identity import suite_digest
from softcpt.compare.rows import Row, parse_rows
from softcpt.compare.run import Request, compare
from softcpt.data.drawn import draw_suite
from softcpt.data.record import Suite
from softcpt.data.suite import load_suite

SETTINGS = {"epochs": "2", "views": "2"}


@dataclass(frozen=True)
class World:
    """Where things lie."""

    suite: Path
    weights: Path
    loaded: Suite
    backbone: Backbone


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Made once and never written to."""
    folder = tmp_path_factory.mktemp("world")
    suite = draw_suite(folder / "suite", tasks=["shape", "colour"], images_per_class=10, size_px=32)
    weights = write_toy_backbone(folder / "backbone")
    return World(suite, weights, load_suite(suite), load_backbone(str(weights)))


@pytest.fixture
def grid(world):
    """Makes a grid without a backbone."""

    def make(**changes) -> Grid:
        suite = changes.pop("suite", world.loaded)
        values = {
            "places": [Place(suite, suite_digest(suite))],
            "rows": [Row("softcpt-nata")],
            "shots": [1],
            "seeds": [1],
            "backbone": "somewhere",
            "weights": "w" * 64,
            "device": "cpu",
            "threads": 1,
            "settings": SETTINGS,
            "resplit": True,
        }
        return Grid(**(values | changes))

    return make


@pytest.fixture
def run(world):
    """Compares in this process."""

    def compare_here(output, methods="zero-shot,coop-mt", shots=(1,), seeds=(1, 2), **more):
        listeners = {key: more.pop(key) for key in list(more) if key.startswith("on_")}
        rows = more.pop("rows", None) or parse_rows(methods.split(","))
        values = {"settings": SETTINGS, "jobs": 1} | more
        suites = values.pop("suites", [world.loaded])
        return compare(suites, world.backbone, output, Request(rows, shots, seeds, **values), **listeners)

    return compare_here
