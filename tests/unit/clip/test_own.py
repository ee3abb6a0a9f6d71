"""The backbone that the package carries: found by its name, small, and exactly the one that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from softcpt.clip import own
from softcpt.clip.backbone import list_backbones, load_backbone
from softcpt.clip.toy import write_toy_backbone

is_there = own.own_folder("mini") is not None
needs_mini = pytest.mark.skipif(not is_there, reason="the weights are not in this checkout yet")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package's own backbones."""
    monkeypatch.setattr(own, "FOLDER", tmp_path / "own")
    write_toy_backbone(tmp_path / "own" / "small")
    return tmp_path


@pytest.mark.usefixtures("toy")
def test_own_backbone_loads_by_its_name_and_keeps_it() -> None:
    assert load_backbone("small").name == "small"
    assert "small" in list_backbones()
    assert list_backbones("sm*") == ["small"]
    assert "small" not in list_backbones("RN*")


def test_a_folder_of_that_name_in_the_working_directory_changes_nothing(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_toy_backbone(toy / "small", seed=1)
    monkeypatch.chdir(toy)
    ours, theirs = load_backbone("small"), load_backbone("./small")
    assert ours.digest != theirs.digest
    assert theirs.name == str(other)
    assert load_backbone("local-dir:small").digest == theirs.digest
    assert load_backbone(Path("small")).digest == theirs.digest


@needs_mini
def test_mini_is_the_one_that_its_card_and_the_documentation_describe() -> None:
    folder = own.own_folder("mini")
    assert folder is not None
    digest = load_backbone("mini").digest
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert digest in card
    assert "?" not in card  # a figure that nobody has measured
    assert digest in (Path(__file__).parents[3] / "docs" / "reference" / "mini.md").read_text("utf-8")
    assert (folder / "WEIGHTS_LICENSE.md").stat().st_size > 1000


@needs_mini
def test_mini_is_small() -> None:
    folder = own.own_folder("mini")
    assert folder is not None
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25_000_000
