"""Processes that use one cache of features at the same time, or are killed while they write to it."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softcpt.clip.backbone import load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite
from softcpt.engine import features
from softcpt.engine.feature_cache import ASIDE, FILE, FeatureCache
from softcpt.engine.features import ImageFeatures

VIEWS = 12
GENEROUS = 10**9

BUILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from softcpt.clip.backbone import load_backbone
from softcpt.data.suite import load_suite
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.features import ImageFeatures
from safetensors.torch import save_file

suite, backbone, cache, output, views, start = sys.argv[1:]
records = load_suite(suite).records
toy = load_backbone(backbone)
Path(output + ".ready").touch()
while start and not Path(start).exists():
    time.sleep(0.01)
with FeatureCache(Path(cache), 10**9) as store:
    found = ImageFeatures(toy, cache=store).views(
        [*records] * int(views), [v for v in range(int(views)) for _ in records]
    )
save_file({"features": found}, output)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "suite"
    return draw_suite(folder, tasks=["shape", "colour"], images_per_class=12, size_px=32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("weights") / "toy")


@pytest.fixture(scope="module")
def right(drawn, toy):
    """What comes out without a cache."""
    torch.set_num_threads(1)
    records = load_suite(drawn).records
    return ImageFeatures(load_backbone(toy)).views(
        [*records] * VIEWS, [v for v in range(VIEWS) for _ in records]
    )


@pytest.fixture
def start(drawn, toy, tmp_path):
    """Begins to build a cache in a process of its own."""
    running = []

    def begin(output, *, views=VIEWS, gate=""):
        arguments = [drawn, toy, tmp_path / "cache", output, views, gate]
        running.append(subprocess.Popen([sys.executable, "-c", BUILD, *map(str, arguments)]))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def n_entries(cache):
    with closing(sqlite3.connect(cache / FILE, timeout=60)) as database:
        try:
            return database.execute("SELECT count(*) FROM features").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def features_of(path):
    return load_file(path)["features"]


@pytest.mark.parametrize("before", ["absent", "damaged"])
def test_two_processes_build_one_cache_at_once(start, tmp_path, right, before):
    cache, gate = tmp_path / "cache", tmp_path / "gate"
    if before == "damaged":
        cache.mkdir()
        (cache / FILE).write_bytes(b"no database" * 9999)
    outputs = [tmp_path / "one", tmp_path / "two"]
    processes = [start(output, gate=gate) for output in outputs]
    for output, process in zip(outputs, processes, strict=True):
        wait_until(Path(f"{output}.ready").exists, process)
    gate.touch()
    for process in processes:
        assert process.wait(120) == 0
    for output in outputs:
        assert torch.equal(features_of(output), right)
    assert n_entries(cache) == len(right)
    assert (cache / ASIDE).exists() == (before == "damaged")
    with closing(sqlite3.connect(cache / FILE)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_killed_build_goes_on_where_it_stopped(start, tmp_path, drawn, toy, right, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    process = start(tmp_path / "never", views=6 * VIEWS)
    wait_until(lambda: (cache / FILE).exists() and n_entries(cache) >= 64, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "never").exists()
    kept = n_entries(cache)
    assert kept >= 64
    encoded = []
    encode = features.encode_alike
    monkeypatch.setattr(
        features, "encode_alike", lambda b, x, *how: encoded.append(len(x)) or encode(b, x, *how)
    )
    records = load_suite(drawn).records
    numbers = [v for v in range(6 * VIEWS) for _ in records]
    with FeatureCache(cache, GENEROUS) as store:
        found = ImageFeatures(load_backbone(toy), cache=store).views([*records] * 6 * VIEWS, numbers)
    assert torch.equal(found[: len(right)], right)
    assert sum(encoded) == len(numbers) - kept
    assert n_entries(cache) == len(numbers)


def test_one_killed_in_the_middle_of_a_transaction_leaves_nothing_of_it(tmp_path):
    """A process that dies with a half-written file and its journal; the next one rolls it back."""
    code = """
import os, signal, sys
from pathlib import Path
from softcpt.engine import feature_cache
from softcpt.engine.feature_cache import Encoder, FeatureCache

encoder = Encoder("toy", "ab" * 32, "fp32", 32, 64, {})
def some(first, n):
    return {(f"{i:064x}", 0): bytes(256) for i in range(first, first + n)}
cache = FeatureCache(Path(sys.argv[1]), 10**9)
cache.put(encoder, some(0, 10))
cache._database().execute("PRAGMA cache_size = 2")  # pages go to the file before the end
mark = feature_cache._mark
def die_late(encoder, key, vector):
    if int(key[0], 16) == 3000:
        os.kill(os.getpid(), signal.SIGKILL)
    return mark(encoder, key, vector)
feature_cache._mark = die_late
cache.put(encoder, some(100, 5000))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / f"{FILE}-journal").stat().st_size > 0
    with FeatureCache(tmp_path, GENEROUS) as cache:
        assert [row.entries for row in cache.contents()] == [10]
