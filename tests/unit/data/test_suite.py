from __future__ import annotations

import os

import pytest

from softcpt.core.errors import SuiteError
from softcpt.data.identical import identical_files
from softcpt.data.suite import find_bad_images, load_suite, scan_suite

YAML = """\
name: garden
description: plants
source: [here]
notes: none
tasks:
- name: leaf
  description: a leaf disease task.
  template: a photo of a {} leaf.
  metric: mean_acc
  classes:
    scab: apple scab
    rust: rust
- name: fruit
"""


def faults_of(source, **options):
    with pytest.raises(SuiteError) as caught:
        load_suite(source, **options)
    return [str(fault) for fault in caught.value.faults]


def only_fault(source, **options):
    faults = faults_of(source, **options)
    assert len(faults) == 1, faults
    return faults[0]


# folders


def test_folders_without_a_description_are_sorted_and_keep_their_names(put, files_of):
    suite = load_suite(put(files_of("b_task/x_y", "b_task/a", "a_task/2", "a_task/10")))
    assert [task.name for task in suite.tasks] == ["a_task", "b_task"]
    assert [task.classes for task in suite.tasks] == [("10", "2"), ("a", "x_y")]
    assert suite.name == "suite"
    assert [r.relative for r in suite.of_class(1, 1)] == [f"b_task/x_y/{i}.png" for i in range(3)]
    assert suite.records == tuple(sorted(suite.records, key=lambda r: (r.task, r.label, r.relative)))


def test_description_orders_and_names_tasks_and_classes(put, good):
    suite = load_suite(put({**good, "suite.yaml": YAML}))
    leaf, fruit = suite.tasks
    assert suite.name == "garden"
    assert (leaf.name, leaf.classes, leaf.metric) == ("leaf", ("apple scab", "rust"), "mean_acc")
    assert (leaf.description, leaf.template) == ("a leaf disease task.", "a photo of a {} leaf.")
    assert (fruit.classes, fruit.template) == (("apple", "pear"), "a photo of a {}.")
    assert {r.relative for r in suite.of_class(0, 0)} == {f"leaf/scab/{i}.png" for i in range(3)}


@pytest.mark.parametrize("name", ["no", "yes", "on", "007", "1.10", "2024-01-01", "True", "0x10"])
def test_class_names_that_look_like_other_yaml_values_stay_text(put, files_of, name):
    yaml = f"tasks:\n- name: t\n  classes:\n  - {name}\n  - other\n"
    suite = load_suite(put({**files_of(f"t/{name}", "t/other"), "suite.yaml": yaml}))
    assert suite.tasks[0].classes == (name, "other")


def test_names_are_equal_however_their_accents_are_encoded(put, files_of):
    yaml = "tasks:\n- name: t\n  classes: {caf\u00e9: caf\u00e9 bar, tea: tea}\n"
    suite = load_suite(put({**files_of("t/cafe\u0301", "t/tea"), "suite.yaml": yaml}))
    assert suite.tasks[0].classes == ("caf\u00e9 bar", "tea")
    assert suite.records[0].relative == "t/caf\u00e9/0.png"


@pytest.mark.parametrize("layout", ["{part}/{task}/{name}/{i}.png", "{task}/{part}/{name}/{i}.png"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_given_parts_may_stand_above_or_below_the_tasks(put, layout, val):
    files = {
        layout.format(part=part, task=task, name=name, i=i): None
        for part in ("train", val, "test")
        for task in ("leaf", "fruit")
        for name in ("a", "b")
        for i in range(2)
    }
    suite = load_suite(put(files))
    assert [task.name for task in suite.tasks] == ["fruit", "leaf"]
    assert [r.part for r in suite.of_class(0, 0)].count("val") == 2
    assert len(suite.records) == 24


def test_a_class_called_train_among_others_is_a_class(put, files_of):
    suite = load_suite(put(files_of("vehicles/bus", "vehicles/train")))
    assert suite.tasks[0].classes == ("bus", "train")
    assert {r.part for r in suite.records} == {None}


def test_hidden_files_and_clutter_are_passed_over_in_silence(put, good):
    clutter = {
        ".git/x/1.png": None,
        "__MACOSX/a/1.png": None,
        "leaf/rust/Thumbs.db": "x",
        "leaf/.y/1.png": None,
    }
    suite = load_suite(put({**good, **clutter, "leaf/rust/.hidden.png": None, "README.md": "hello"}))
    assert (len(suite.records), suite.notes) == (12, ())


def test_files_that_are_no_images_are_left_aside_with_a_note(put, good):
    suite = load_suite(put({**good, "leaf/rust/list.txt": "x", "leaf/loose.png": None, "loose.png": None}))
    assert len(suite.records) == 12
    assert any(
        "leaf/rust: 1 file without an image suffix" in note and "list.txt" in note for note in suite.notes
    )
    assert any("leaf: 1 image outside every class folder" in note for note in suite.notes)
    assert any("loose.png: an image outside" in note for note in suite.notes)


def test_identical_files_of_a_class_count_once_with_a_note(put, good):
    folder = put(good)
    (folder / "leaf/rust/copy.png").write_bytes((folder / "leaf/rust/0.png").read_bytes())
    suite = load_suite(folder)
    assert len(suite.of_class(1, 0)) == 3
    assert suite.notes == ("leaf/rust/copy.png: the same file as leaf/rust/0.png, counted once",)


def test_an_image_that_is_gone_is_named(put, good):
    suite = load_suite(put(good))
    suite.records[0].path.unlink()
    with pytest.raises(SuiteError, match="cannot be read any more") as caught:
        identical_files(suite.records)
    assert [fault.where for fault in caught.value.faults] == [str(suite.records[0].path)]


def test_identical_files_of_two_classes_of_a_task_are_both_kept_with_a_note(put, good):
    folder = put(good)
    (folder / "leaf/scab/copy.png").write_bytes((folder / "leaf/rust/0.png").read_bytes())
    suite = load_suite(folder)
    assert len(suite.records) == 13
    assert suite.notes == (
        "leaf/rust/0.png: the same image stands in the classes 'rust' and 'scab' of task 'leaf'; "
        "all labels are kept",
    )


def test_identical_files_of_two_tasks_are_both_kept(put, good):
    folder = put(good)
    (folder / "fruit/apple/copy.png").write_bytes((folder / "leaf/rust/0.png").read_bytes())
    assert len(load_suite(folder).records) == 13


def test_folders_that_the_description_leaves_out_are_left_aside_with_a_note(put, good, files_of):
    yaml = "tasks:\n- name: leaf\n  classes: [rust, scab]\n"
    suite = load_suite(put({**good, **files_of("leaf/mould"), "suite.yaml": yaml}))
    assert [task.name for task in suite.tasks] == ["leaf"]
    assert suite.tasks[0].classes == ("rust", "scab")
    assert [note.split(":")[0] for note in suite.notes] == ["fruit", "leaf/mould"]


# faults of folders


def test_a_missing_source_names_the_nearest_one_beside_it(put, good):
    folder = put(good, "plants")
    assert 'did you mean "plants"?' in only_fault(folder.parent / "plant")


def test_an_empty_folder_has_no_tasks(tmp_path):
    assert "no tasks" in only_fault(tmp_path)


def test_a_folder_of_class_folders_alone_is_told_its_level_is_missing(put, files_of):
    assert "one folder level is missing" in only_fault(put(files_of("rust", "scab")))


def test_class_folders_below_train_and_test_are_told_their_level_is_missing(put, files_of):
    folder = put(files_of("train/rust", "train/scab", "test/rust", "test/scab"))
    assert 'images directly in "test/rust", "test/scab", "train/rust", "train/scab"' in only_fault(folder)


def test_every_fault_of_a_suite_is_listed_at_once(put, files_of):
    yaml = """\
tasks:
- name: leef
- name: leaf
  classes: {ruts: rust, scab: scab}
- name: single
- name: twice
- name: empty
- name: nested
"""
    files = {
        **files_of("leaf/rust", "leaf/scab", "leaves/a", "single/one", "twice/a_b", "twice/a b"),
        **files_of("empty/full", "nested/a", "nested/b", "nested/b/deeper"),
        "empty/hollow/readme.txt": "nothing",
        "suite.yaml": yaml,
    }
    faults = "\n".join(faults_of(put(files)))
    for expected in (
        'tasks[0].name: no folder "leef" (did you mean "leaves"?)',
        'leaf/ruts: no such class, though suite.yaml names it (did you mean "rust"?)',
        'single: only one class, "one"',
        'twice/a_b: "a_b" reads the same as class "a b"',
        "empty/hollow: no images",
        "nested/b/deeper: a folder inside a class folder",
    ):
        assert expected in faults
    assert faults.count("\n") == 5


def test_two_folders_whose_names_only_differ_in_encoding_are_a_fault(put, files_of):
    assert "encoded otherwise" in only_fault(put(files_of("t/caf\u00e9", "t/cafe\u0301", "t/tea")))


def test_class_names_that_differ_in_capitals_are_noted(put, files_of):
    notes = load_suite(put(files_of("t/a", "t/A", "t/b"))).notes
    assert len(notes) == 1
    assert "capitals" in notes[0]


def test_a_given_split_with_one_image_in_two_parts_is_a_fault_even_across_tasks(put, files_of):
    folder = put(files_of("train/t/a", "train/t/b", "test/t/a", "test/t/b", "train/u/a", "train/u/b"))
    image = (folder / "train/t/a/0.png").read_bytes()
    (folder / "test/t/b/copy.png").write_bytes(image)
    (folder / "test/u/a").mkdir(parents=True)
    (folder / "test/u/a/copy.png").write_bytes((folder / "train/t/a/1.png").read_bytes())
    faults = faults_of(folder)
    assert len(faults) == 2
    assert all("the same image in train and in test" in fault for fault in faults)


def test_a_split_for_some_tasks_only_is_a_fault(put, files_of):
    assert "6 images have a given split, 6 have none" in only_fault(
        put(files_of("t/train/a", "t/train/b", "u/a", "u/b"))
    )


def test_classes_that_a_given_split_leaves_untested_are_noted(put, files_of):
    suite = load_suite(put(files_of("train/t/a", "train/t/b", "test/t/a")))
    assert suite.notes == (
        "the given split has no val images; nothing can be chosen by them",
        "t: the given split has no test images of 'b'",
    )


def test_a_dangling_link_is_a_fault(put, good):
    folder = put(good)
    (folder / "leaf/rust/link.png").symlink_to(folder / "nowhere.png")
    assert "leaf/rust/link.png: a link to a file that does not exist" in only_fault(folder)


def test_a_file_name_that_is_not_utf8_is_a_fault(put, good):
    folder = put(good)
    (folder / "leaf/rust" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    assert "not UTF-8" in only_fault(folder)


# suite.yaml


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        (
            "tasks:\n- name: leaf\n  metrics: mean_acc\n",
            'tasks[0].metrics: unknown key (did you mean "metric"?)',
        ),
        ("nmae: x\n", 'nmae: unknown key (did you mean "name"'),
        ("tasks:\n- name: leaf\n  metric: f1\n", 'tasks[0].metric: unknown metric "f1"'),
        ("tasks:\n- name: leaf\n  template: a photo\n", 'needs exactly one "{}"'),
        ("tasks:\n- name: leaf\n  template: a {} of {}\n", 'needs exactly one "{}"'),
        ("tasks:\n- name: leaf\n  template: a {x} of {}\n", 'needs exactly one "{}"'),
        ("tasks:\n- description: x\n", "tasks[0].name: missing"),
        ("tasks: leaf\n", "tasks"),
        ("tasks: []\n", "no tasks"),
        ("tasks:\n- name: leaf\n- name: leaf\n", 'tasks[1].name: "leaf" is also the name of tasks[0]'),
        ("tasks:\n- name: leaf\n  classes: {rust: a, rust: b}\n", 'line 3: the key "rust" stands twice'),
        ("tasks:\n- name: leaf\n  classes: [rust, rust]\n", '"rust" stands twice'),
        ("name: a\nname: b\n", 'line 2: the key "name" stands twice'),
        ("tasks:\n- name: leaf\n  classes: {~: a, rust: b}\n", "tasks[0].classes"),
        ("tasks: [\n", "not YAML"),
        ("a: &x [1]\nb: *x\n", "an alias"),
        ("- leaf\n", "holds no keys"),
        ("", "holds no keys"),
        ("[" * 50 + "]" * 50, "nested deeper"),
        (b"name: caf\xe9\n", "not UTF-8"),
        ("name: ''\n", "name: empty"),
        ("!!python/object:os.system x\n", "not YAML"),
    ],
)
def test_a_faulty_description_says_what_is_wrong(put, good, yaml, expected):
    assert expected in "\n".join(faults_of(put({**good, "suite.yaml": yaml}), check_images=False))


def test_an_empty_readable_name_is_a_fault(put, good):
    yaml = "tasks:\n- name: leaf\n  classes: {rust: '', scab: ' _ '}\n"
    faults = faults_of(put({**good, "suite.yaml": yaml}))
    assert [fault.split(" (")[0] for fault in faults] == [
        "leaf/rust: an empty class name",
        "leaf/scab: an empty class name",
    ]


def test_a_description_that_is_itself_given_as_the_suite_points_to_its_folder(put, good):
    folder = put({**good, "suite.yaml": YAML})
    assert f"give its folder, {folder}" in only_fault(folder / "suite.yaml")


# images


def bad_suite(put, good):
    folder = put({**good, "leaf/rust/empty.png": b"", "leaf/scab/words.jpg": "no picture"})
    cut = (folder / "fruit/apple/0.png").read_bytes()
    (folder / "fruit/apple/0.png").write_bytes(cut[: len(cut) // 2])
    return folder


def test_every_bad_image_is_a_fault_by_its_path(put, good):
    faults = faults_of(bad_suite(put, good))
    assert [fault.split(":")[0] for fault in faults] == [
        "fruit/apple/0.png",
        "leaf/rust/empty.png",
        "leaf/scab/words.jpg",
    ]


def test_bad_images_are_left_out_with_a_note_when_asked(put, good):
    suite = load_suite(bad_suite(put, good), skip_bad_images=True)
    assert len(suite.records) == 11
    assert len(suite.notes) == 3
    assert find_bad_images(suite) == []


def test_a_class_that_loses_all_its_images_is_a_fault(put, good):
    folder = put({**good, **{f"leaf/rust/{i}.png": f"no picture {i}" for i in range(3)}})
    assert "leaf/rust: none of its images can be read" in only_fault(folder, skip_bad_images=True)


def test_images_are_not_decoded_when_not_asked(put, good):
    assert len(load_suite(bad_suite(put, good), check_images=False).records) == 14


def test_scanning_shows_what_is_usable_beside_the_faults(put, good, files_of):
    suite, faults = scan_suite(put({**good, **files_of("single/one")}))
    assert len(faults) == 1
    assert [task.name for task in suite.tasks] == ["fruit", "leaf", "single"]
    nothing, faults = scan_suite(put({"empty/.keep": ""}, "nothing"))
    assert nothing is None
    assert faults
