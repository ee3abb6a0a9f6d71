from __future__ import annotations

import re
from pathlib import Path

import pytest

from softcpt.core.errors import SuiteError
from softcpt.data.suite import load_suite

ROWS = "".join(f"pictures/{name}{i}.png,leaf,{name}\n" for name in ("rust", "scab") for i in range(3))
PICTURES = {f"pictures/{name}{i}.png": None for name in ("rust", "scab") for i in range(3)}


def with_manifest(put, rows, header="image,task,class\n", **files):
    return put({**PICTURES, "list.csv": header + rows, **files}) / "list.csv"


def faults_of(source):
    with pytest.raises(SuiteError) as caught:
        load_suite(source)
    return [str(fault) for fault in caught.value.faults]


def test_manifest_names_the_images(put):
    manifest = with_manifest(put, ROWS)
    suite = load_suite(manifest)
    assert [(task.name, task.classes) for task in suite.tasks] == [("leaf", ("rust", "scab"))]
    assert suite.records[0].relative == "pictures/rust0.png"
    assert (suite.root, suite.source, suite.name) == (manifest.parent, manifest, "suite")


def test_manifest_may_have_a_byte_order_mark_backslashes_and_blank_lines(put):
    manifest = with_manifest(put, ROWS.replace("/", "\\") + "\n\n", header="\ufeffimage,task,class\r\n")
    assert load_suite(manifest).records[5].relative == "pictures/scab2.png"


def test_folder_with_pictures_and_a_manifest_is_read_through_the_manifest(put):
    folder = put({**PICTURES, "manifest.csv": "image,task,class\n" + ROWS})
    suite = load_suite(folder)
    assert (len(suite.records), suite.source) == (6, folder / "manifest.csv")


def test_folder_with_class_folders_and_a_manifest_must_be_told_which(put, good):
    assert (
        "both class folders and manifest.csv"
        in faults_of(put({**good, "manifest.csv": "image,task,class\n"}))[0]
    )


def test_split_and_group_are_kept(put):
    rows = "".join(
        f"{line},{part},{group}\n"
        for line, part, group in zip(
            ROWS.splitlines(), ["train", "Valid", "test"] * 2, ["g1", "g2", ""] * 2, strict=True
        )
    )
    suite = load_suite(with_manifest(put, rows, "image,task,class,split,group\n"))
    assert [r.part for r in suite.records] == ["train", "val", "test"] * 2
    assert [r.group for r in suite.records] == ["g1", "g2", None] * 2


def test_description_beside_the_manifest_orders_and_names(put):
    classes = "{scab: apple scab, rust: leaf rust}"
    yaml = f"name: garden\ntasks:\n- name: leaf\n  metric: mean_acc\n  classes: {classes}\n"
    rows = ROWS.replace(",rust", ",leaf rust")
    suite = load_suite(with_manifest(put, rows, **{"suite.yaml": yaml}))
    assert suite.tasks[0].classes == ("apple scab", "leaf rust")
    assert (suite.name, suite.tasks[0].metric) == ("garden", "mean_acc")
    assert suite.of_class(0, 1)[0].relative == "pictures/rust0.png"


def test_description_of_other_tasks_is_left_aside_with_a_note(put):
    suite = load_suite(with_manifest(put, ROWS, **{"suite.yaml": "tasks:\n- name: fruit\n"}))
    assert suite.tasks[0].classes == ("rust", "scab")
    assert "left aside" in suite.notes[0]


def test_task_that_the_description_does_not_name_is_a_fault(put):
    rows = ROWS + ROWS.replace("leaf", "leav")
    (fault,) = faults_of(with_manifest(put, rows, **{"suite.yaml": "tasks:\n- name: leaf\n- name: leaves\n"}))
    assert fault == "list.csv: task 'leav': not named in suite.yaml (did you mean \"leaves\"?)"


def test_class_that_the_description_does_not_name_is_a_fault(put):
    yaml = "tasks:\n- name: leaf\n  classes: [rust, scap]\n"
    faults = faults_of(with_manifest(put, ROWS, **{"suite.yaml": yaml}))
    assert faults == [
        "list.csv: class 'scab' of task 'leaf': not named in suite.yaml (did you mean \"scap\"?)",
        "leaf/scap: no such class, though suite.yaml names it "
        "(add its images, or remove the class from suite.yaml)",
    ]


def test_one_image_under_two_labels_is_noted_and_kept_twice(put):
    suite = load_suite(with_manifest(put, ROWS + "pictures/rust0.png,leaf,scab\n"))
    assert len(suite.records) == 7
    assert "stands in the classes 'rust' and 'scab' of task 'leaf'" in suite.notes[0]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("/etc/passwd,leaf,rust", "leaves the folder"),
        ("C:\\x.png,leaf,rust", "leaves the folder"),
        ("../x.png,leaf,rust", "leaves the folder"),
        ("pictures/rust9.png,leaf,rust", 'no file pictures/rust9.png (did you mean "rust'),
        ("pictures,leaf,rust", "is not a file"),
        ("outside/x.png,leaf,rust", "leads out of the folder through a link"),
        (",leaf,rust", "the image is empty"),
        ("pictures/rust0.png,,rust", "the task is empty"),
        ("pictures/rust0.png,leaf, ", "the class is empty"),
        ("pictures/rust0.png,leaf,rust", "stands already in line 2"),
        ("./pictures/rust0.png,leaf,rust", "stands already in line 2"),
        ("pictures/rust0.png,leaf", "2 cells, the header has 3"),
        ('"pictures/rust0.png,leaf,rust', "not CSV"),
    ],
)
def test_faulty_row_is_named_by_its_line(put, tmp_path, row, expected):
    manifest = with_manifest(put, ROWS + row + "\n")
    (tmp_path / "x.png").write_bytes(b"x")
    (manifest.parent / "outside").symlink_to(tmp_path)
    (fault,) = faults_of(manifest)
    assert expected in fault
    assert fault.startswith("list.csv line 8: ") or "not CSV" in fault


def test_all_faulty_rows_are_listed_at_once(put):
    rows = ROWS + "a.png,leaf,rust\nb.png,leaf,rust\n../c.png,leaf,rust\n"
    assert [fault.split(":")[0] for fault in faults_of(with_manifest(put, rows))] == [
        "list.csv line 8",
        "list.csv line 9",
        "list.csv line 10",
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image,task,label\n", ['unknown column "label"', 'no column "class"']),
        ("image,task,klass\n", ['unknown column "klass" (did you mean "class"?)', 'no column "class"']),
        ("image,task,class,class\n", ['the column "class" stands twice']),
        ("image;task;class\n", ["separated by semicolons"]),
        ("image\ttask\tclass\n", ["separated by tabs"]),
    ],
)
def test_wrong_columns_are_faults(put, header, expected):
    faults = faults_of(with_manifest(put, ROWS, header))
    assert len(faults) == len(expected)
    for fault, text in zip(faults, expected, strict=True):
        assert text in fault


def test_empty_manifest_holds_no_rows(put):
    assert "holds no rows" in faults_of(with_manifest(put, ""))[0]


def with_parts(put, words, groups=None):
    columns = [ROWS.splitlines(), words] + ([groups] if groups else [])
    rows = "".join(",".join(cells) + "\n" for cells in zip(*columns, strict=True))
    return with_manifest(put, rows, "image,task,class,split" + (",group" if groups else "") + "\n")


def test_unknown_split_word_is_a_fault(put):
    (fault,) = faults_of(with_parts(put, ["train", "tset", "test"] + ["train"] * 3))
    assert fault.startswith('list.csv line 3: unknown split "tset" (did you mean "test"')


def test_the_manifest_that_the_docs_show_is_one(put):
    docs = Path(__file__).parents[3] / "docs/how-to/suites.md"
    shown = re.search(r"```csv\n(.*?)```", docs.read_text(encoding="utf-8"), re.S).group(1)
    images = {line.split(",")[0]: None for line in shown.splitlines()[1:]}
    suite = load_suite(put({**images, "photos.csv": shown}) / "photos.csv")
    assert len(suite.records) == len(images)


def test_split_for_some_rows_only_is_a_fault(put):
    (fault,) = faults_of(with_parts(put, ["train", "", "test"] + ["train"] * 3))
    assert "5 images have a given split, 1 have none: list.csv line 3" in fault


def test_group_over_two_given_parts_is_a_fault(put):
    (fault,) = faults_of(with_parts(put, ["train", "test", "test"] * 2, list("ppqrsq")))
    assert fault.startswith('group "p": its images lie in train (list.csv line 2) and test (list.csv line 3)')


def test_one_file_in_two_groups_of_a_class_is_a_fault(put):
    manifest = with_parts(put, [""] * 6, list("aabbcc"))
    folder = manifest.parent / "pictures"
    (folder / "rust2.png").write_bytes((folder / "rust0.png").read_bytes())
    (fault,) = faults_of(manifest)
    assert "but in another group" in fault
