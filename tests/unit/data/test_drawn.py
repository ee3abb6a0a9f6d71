from __future__ import annotations

import pytest

from softcpt.core.errors import SuiteError
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite


def test_drawn_suite_loads_without_a_fault_or_a_note(tmp_path):
    suite = load_suite(draw_suite(tmp_path / "drawn", images_per_class=3, size_px=32))
    assert [task.name for task in suite.tasks] == ["shape", "colour", "pattern", "position", "number"]
    assert suite.tasks[3].classes == ("top left", "top right", "bottom left", "bottom right")
    assert (suite.name, suite.notes, len(suite.records)) == ("drawn", (), 18 * 3)


def test_same_seed_draws_the_same_files_and_more_images_change_none(tmp_path):
    few = draw_suite(tmp_path / "few", tasks=["colour"], images_per_class=2, size_px=32)
    more = draw_suite(tmp_path / "more", tasks=["shape", "colour"], images_per_class=3, size_px=32)
    other = draw_suite(tmp_path / "other", tasks=["colour"], images_per_class=2, size_px=32, seed=1)
    for path in sorted((few / "colour").rglob("*.png")):
        inside = path.relative_to(few)
        assert path.read_bytes() == (more / inside).read_bytes()
        assert path.read_bytes() != (other / inside).read_bytes()


def test_unknown_task_and_occupied_folder_are_refused_together(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(SuiteError) as caught:
        draw_suite(tmp_path, tasks=["shapes"])
    assert [fault.what for fault in caught.value.faults] == [
        'no drawn task "shapes"',
        "is not an empty folder",
    ]
