from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from softcpt.data.record import Record, Suite, Task
from softcpt.data.split import part_sizes, split_suite
from softcpt.data.suite import load_suite


def parts_of_classes(suite, split):
    counts = Counter()
    for record, part in zip(suite.records, split.parts, strict=True):
        counts[suite.tasks[record.task].name, suite.tasks[record.task].classes[record.label], part] += 1
    return counts


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (2, 0, 1)),
        (4, (2, 1, 1)),
        (5, (2, 1, 2)),
        (6, (3, 1, 2)),
        (7, (4, 1, 2)),
        (8, (4, 2, 2)),
        (9, (4, 2, 3)),
        (10, (5, 2, 3)),
        (15, (8, 3, 4)),
        (25, (12, 5, 8)),
        (54, (27, 11, 16)),
    ],
)
def test_part_sizes_worked_by_hand(n, sizes):
    assert part_sizes(n) == sizes


def test_every_class_is_split_by_the_rule(put, files_of):
    suite = load_suite(put({**files_of("t/a", n=20), **files_of("t/b", n=7), **files_of("u/c", "u/d", n=10)}))
    counts = parts_of_classes(suite, split_suite(suite))
    for (task, name), n in {("t", "a"): 20, ("t", "b"): 7, ("u", "c"): 10, ("u", "d"): 10}.items():
        assert tuple(counts[task, name, part] for part in ("train", "val", "test")) == part_sizes(n)


def test_seed_decides_and_nothing_else(put, files_of):
    suite = load_suite(put(files_of("t/a", "t/b", n=20)))
    assert split_suite(suite, seed=1) == split_suite(suite, seed=1)
    assert split_suite(suite, seed=1) != split_suite(suite, seed=2)
    assert split_suite(suite) == split_suite(suite, seed=0)


def test_given_split_is_kept(put, files_of):
    suite = load_suite(put({**files_of("train/t/a", "train/t/b"), **files_of("test/t/a", "test/t/b")}))
    assert split_suite(suite, seed=5).parts == tuple(record.part for record in suite.records)


def test_mode_all_trains_on_everything_even_with_a_given_split(put, files_of):
    suite = load_suite(put({**files_of("train/t/a", "train/t/b"), **files_of("test/t/a", "test/t/b")}))
    assert set(split_suite(suite, mode="all").parts) == {"train"}


def test_class_without_test_images_is_noted(put, files_of):
    suite = load_suite(put({**files_of("t/a", n=12), **files_of("t/single", n=1)}))
    assert split_suite(suite).notes == ("t: class 'single' has no test images; scores leave it out",)


def test_identical_files_of_several_tasks_get_one_part_whatever_the_seed(put, files_of):
    folder = put(files_of("t/a", "t/b", "u/c", "u/d", n=12))
    for i in range(6):
        (folder / f"u/c/copy{i}.png").write_bytes((folder / f"t/a/{i}.png").read_bytes())
    suite = load_suite(folder)
    seen = set()
    for seed in range(8):
        part_of = dict(
            zip((r.relative for r in suite.records), split_suite(suite, seed=seed).parts, strict=True)
        )
        for i in range(6):
            assert part_of[f"u/c/copy{i}.png"] == part_of[f"t/a/{i}.png"]
            seen.add((i, part_of[f"t/a/{i}.png"]))
        counts = parts_of_classes(suite, split_suite(suite, seed=seed))
        assert [counts["t", "a", part] for part in ("train", "val", "test")] == list(part_sizes(12))
        assert [counts["u", "c", part] for part in ("train", "val", "test")] == list(part_sizes(18))
    assert len(seen) > 8  # the seed decides which unit goes where


def grouped_suite(put, files_of, groups):
    names = [f"t/{name}/{i}.png" for name in ("a", "b") for i in range(30)]
    rows = "".join(f"{name},t,{name[2]},{groups(i)}\n" for i, name in enumerate(names))
    manifest = {"list.csv": "image,task,class,group\n" + rows}
    return load_suite(put({**dict.fromkeys(names), **manifest}) / "list.csv")


def test_groups_stay_together_and_sizes_stay_near(put, files_of):
    suite = grouped_suite(put, files_of, lambda i: f"plant{i // 4}" if i < 40 else "")
    for seed in range(5):
        split = split_suite(suite, seed=seed)
        parts = {}
        for record, part in zip(suite.records, split.parts, strict=True):
            if record.group:
                parts.setdefault(record.group, set()).add(part)
        assert {len(found) for found in parts.values()} == {1}
        counts = parts_of_classes(suite, split)
        for name in ("a", "b"):
            for part, size in zip(("train", "val", "test"), part_sizes(30), strict=True):
                assert abs(counts["t", name, part] - size) <= 3


def test_one_group_for_a_whole_class_goes_to_train(put, files_of):
    suite = grouped_suite(put, files_of, lambda i: "all" if i < 30 else "")
    split = split_suite(suite)
    assert parts_of_classes(suite, split)["t", "a", "train"] == 30
    assert split.notes == ("t: class 'a' has no test images; scores leave it out",)


def test_order_of_tasks_does_not_change_the_split(put, files_of):
    folder = put(files_of("t/a", "t/b", "u/c", "u/d", n=12))
    (folder / "u/c/copy.png").write_bytes((folder / "t/a/0.png").read_bytes())
    forward = load_suite(folder)
    (folder / "suite.yaml").write_text("tasks:\n- name: u\n- name: t\n")
    backward = load_suite(folder)
    first, second = (
        dict(zip((r.relative for r in suite.records), split_suite(suite, seed=3).parts, strict=True))
        for suite in (forward, backward)
    )
    assert first == second


def test_split_is_the_same_on_every_machine(tmp_path):
    # recorded once; files of different sizes, so that none is read
    records = []
    for i in range(10):
        path = tmp_path / f"{i}.png"
        path.write_bytes(b"x" * (i + 1))
        records.append(Record(path, f"t/a/{i}.png", 0, 0))
    suite = Suite("s", Path(tmp_path), Path(tmp_path), (Task("t", ("a", "b")),), tuple(records))
    initials = "".join(part[0] + part[1] for part in split_suite(suite, seed=0).parts)
    assert initials == "vatrtetevatetrtrtrtr"
    moved = replace(suite, root=Path("/elsewhere"))
    assert split_suite(moved).parts == split_suite(suite).parts
