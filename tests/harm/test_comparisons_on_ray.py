"""Cells on a real Ray cluster of two nodes on this machine, one of whose workers is killed midway."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from softcpt.clip.toy import write_toy_backbone
from softcpt.compare.rows import parse_rows
from softcpt.compare.run import Request, compare
from softcpt.data.drawn import draw_suite

ray = pytest.importorskip("ray", reason="needs softcpt[ray]")
pytestmark = [
    pytest.mark.slow,
    # Ray's own sockets and processes are closed when they are collected, not when its cluster ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    made = _two_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def _two_nodes():
    """On a busy machine a node may not be up within the half minute that Ray gives it."""
    from ray.cluster_utils import Cluster

    for last in (False, False, True):
        made = Cluster()
        try:
            made.add_node(num_cpus=1, include_dashboard=False)
            made.add_node(num_cpus=1)
            made.wait_for_nodes()
        except Exception:
            made.shutdown()
            if last:
                raise
        else:
            return made


def test_a_killed_workers_cells_run_again_and_the_results_are_those_of_one_process(cluster, tmp_path):
    suite = draw_suite(tmp_path / "suite", tasks=["shape", "colour"], images_per_class=10, size_px=32)
    toy = write_toy_backbone(tmp_path / "toy")
    settings = {"epochs": "10", "views": "1"}
    rows = parse_rows(["zero-shot", "coop-mt"])
    asked = Request(rows, [1], [1, 2, 3], settings, cache=tmp_path / "cache")
    killed: list[int] = []

    def kill_a_worker() -> None:
        """The first worker seen at a cell, while others are still waiting."""
        deadline = time.monotonic() + 1200
        while not killed and time.monotonic() < deadline:
            if len(list((tmp_path / "ray" / "cells").glob("*.json"))) >= 1:
                for pid in _workers():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.05)

    watcher = threading.Thread(target=kill_a_worker)
    watcher.start()
    on_ray = compare(
        [suite], toy, tmp_path / "ray", Request(**(vars(asked) | {"ray": cluster.address})), on_progress=None
    )
    watcher.join()
    assert killed
    assert not on_ray.failed
    here = compare([suite], toy, tmp_path / "here", Request(**(vars(asked) | {"jobs": 1})))
    assert on_ray.found.keys() == here.found.keys()
    for place, cell in here.found.items():
        assert on_ray.found[place]["tasks"] == cell["tasks"]
        assert on_ray.found[place]["val_score"] == cell["val_score"]


def _workers() -> list[int]:
    """Processes of Ray that are at a task of ours; Ray names them after it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith("ray::attempt"):
            found.append(int(file.parent.name))
    return found
