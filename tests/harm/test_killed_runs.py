"""A run that is killed, or that meets another in its folder, is whole or plainly not there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softcpt.clip.toy import write_toy_backbone
from softcpt.core.errors import RunError
from softcpt.data.drawn import draw_suite
from softcpt.engine.evaluate import evaluate
from softcpt.engine.runs import FILES, open_output, open_run
from softcpt.engine.train import train


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "suite"
    return draw_suite(folder, tasks=["shape", "colour"], images_per_class=10, size_px=32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("weights") / "toy")


def test_a_killed_run_is_unfinished_and_can_be_started_again(drawn, toy, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "-m", "softcpt", "train", str(drawn), "--backbone", str(toy), "--quiet"]
    process = subprocess.Popen([*command, "--output", str(output), "epochs=100000", "views=1"])
    try:
        deadline = time.monotonic() + 120
        while not (output / "metrics.jsonl").exists() or (output / "metrics.jsonl").stat().st_size == 0:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(RunError, match="another run is being written"):
            train(drawn, toy, output, epochs=1, shots=1, views=1, overwrite=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(RunError, match="not finished"):
        open_run(output)
    with pytest.raises(RunError, match=r"unfinished run.*--overwrite"):
        train(drawn, toy, output, epochs=1, shots=1, views=1)
    run = train(drawn, toy, output, epochs=1, shots=1, views=1, overwrite=True)
    assert 0 <= evaluate(run).score <= 1
    assert not list(output.glob(".*"))


@pytest.mark.parametrize(
    "left",
    [
        ["run.lock"],
        ["run.lock", "log.txt"],
        ["adapter.json", "split.json", "log.txt"],
        [".adapter.json.x1.part"],
    ],
)
def test_what_a_run_killed_at_any_moment_leaves_is_replaced_when_asked(drawn, toy, tmp_path, left):
    output = tmp_path / "run"
    output.mkdir()
    for name in left:
        (output / name).write_text("")
    if left != ["run.lock"]:
        with pytest.raises(RunError, match="unfinished run"):
            train(drawn, toy, output, epochs=1, shots=1, views=1)
    train(drawn, toy, output, epochs=1, shots=1, views=1, overwrite=True)
    assert {path.name for path in output.iterdir()} == set(FILES)


def test_a_folder_that_cannot_be_written_is_one_clear_error(drawn, toy, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(RunError, match="cannot be written"):
        train(drawn, toy, closed / "run", epochs=1, shots=1, views=1)


def test_a_file_where_the_folder_should_be_is_one_clear_error(drawn, toy, tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(RunError, match="is a file"):
        train(drawn, toy, tmp_path / "run", epochs=1)
    with (
        pytest.raises(RunError, match="cannot be written"),
        open_output(tmp_path / "run" / "deeper", overwrite=False),
    ):
        pass
