"""A comparison killed at random moments, again and again, ends in the same table as one left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite

KILLS = 3


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    suite = draw_suite(folder / "suite", tasks=["shape", "colour"], images_per_class=10, size_px=32)
    toy = write_toy_backbone(folder / "toy")
    words = [sys.executable, "-m", "softcpt", "compare", str(suite), "--backbone", str(toy), "--jobs", "2"]
    words += ["--methods", "zero-shot,coop-mt,coop-ca", "--shots", "1,2", "--seeds", "1,2,3", "--quiet"]
    return [*words, "epochs=2", "views=2", "--output"]


def alike(file: Path):
    """Results without the seconds that they took."""
    content = json.loads(file.read_text())
    for row in content["rows"]:
        del row["train_seconds"]
    for cell in content["cells"]:
        del cell["train_seconds"]
    return content


def n_cells(folder: Path) -> int:
    return len(list((folder / "cells").glob("*.json")))


@pytest.mark.slow
def test_a_comparison_killed_at_random_moments_gives_the_same_table(command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    chance = random.Random(os.environ.get("SOFTCPT_TEST_SEED", "7"))
    for kill in range(KILLS):
        process = subprocess.Popen(
            [*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Each time a little further, at a moment between two cells or within one.
        wanted = min(n_cells(killed) + kill % 3 + 1, 14)
        deadline = time.monotonic() + 300
        while n_cells(killed) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert n_cells(killed) > 0
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    assert alike(killed / "results.json") == alike(whole / "results.json")
    assert not (killed / "work").exists()
    assert not list(killed.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_comparison_leaves_no_process_behind(command, tmp_path):
    process = subprocess.Popen(
        [*command, str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children: list[int] = []
    deadline = time.monotonic() + 300
    while not children and time.monotonic() < deadline:
        children = _children(process.pid)
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if Path(f"/proc/{pid}/cmdline").exists()]


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(status.parent.name))
    return found
