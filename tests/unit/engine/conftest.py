"""A drawn suite and a toy backbone, on disk."""

import shutil
from pathlib import Path

import pytest

from softcpt.clip.backbone import load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite
from softcpt.engine.train import train
from softcpt.methods.registry import get_method

QUICK = {"shots": 2, "epochs": 2, "views": 2, "lr": 0.02, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "suite"
    return draw_suite(folder, tasks=["shape", "colour", "number"], images_per_class=12, size_px=32)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("weights") / "toy")


@pytest.fixture(scope="session")
def suite(drawn):
    return load_suite(drawn)


@pytest.fixture(scope="session")
def toy(toy_folder):
    return load_backbone(toy_folder)


@pytest.fixture
def quick(suite, toy, tmp_path):
    """Trains a short run; keys change its settings."""
    made = []

    def run(method="softcpt-nata", **keys):
        made.append(tmp_path / f"run{len(made)}")
        settings = {
            key: value
            for key, value in QUICK.items()
            if get_method(method).trains or key in ("shots", "device")
        }
        return train(suite, toy, made[-1], method=method, **{**settings, **keys})

    return run


@pytest.fixture(scope="session")
def finished(suite, toy, tmp_path_factory) -> Path:
    """A finished run; never written to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(suite, toy, folder, **QUICK)
    return folder


@pytest.fixture
def own_run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "own run"))


@pytest.fixture
def own_suite(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "suite"))
