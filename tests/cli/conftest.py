"""A drawn suite, a toy backbone and a finished run, made once a worker; the command line in-process."""

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from softcpt.app.cli.main import main
from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite


@dataclass(frozen=True)
class Ended:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class World:
    """Where things lie: a suite of two tasks, a backbone, another one, and a run on them."""

    suite: Path
    backbone: Path
    other_backbone: Path
    run: Path


@pytest.fixture
def softcpt(capsys, monkeypatch):
    """Runs a command line and returns exit code, stdout and stderr."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Made once and never written to."""
    folder = tmp_path_factory.mktemp("world")
    suite = draw_suite(folder / "suite", tasks=["shape", "colour"], images_per_class=10, size_px=32)
    backbone = write_toy_backbone(folder / "backbone")
    other = write_toy_backbone(folder / "other", seed=1)
    run = folder / "run"
    where = [str(suite), "--backbone", str(backbone), "--output", str(run)]
    assert main(["train", *where, "--quiet", "--shots", "2", "epochs=2", "views=2"]) == 0
    return World(suite, backbone, other, run)


@pytest.fixture
def own_suite(world, tmp_path):
    """A copy of the suite that a test may spoil."""
    return Path(shutil.copytree(world.suite, tmp_path / "suite"))


@pytest.fixture
def own_run(world, tmp_path):
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(world.run, tmp_path / "run"))
