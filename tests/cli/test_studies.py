"""The studies of ``benchmarks/`` whose figures stand in docs/results.md, on a miniature."""

import sys

import pytest

from benchmarks import join_suites, left_out
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite


@pytest.fixture
def study(capsys, monkeypatch):
    """Runs a study's command line and returns what it printed."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def test_joined_suites_keep_images_names_and_texts(study, world, tmp_path):
    other = draw_suite(tmp_path / "second", tasks=["colour"], images_per_class=3, size_px=32)
    with pytest.raises(SystemExit, match="names of their own"):
        study(join_suites, world.suite, other, "--output", tmp_path / "all")
    assert not (tmp_path / "all").exists()
    about = (other / "suite.yaml").read_text()
    (other / "suite.yaml").write_text(about.replace("name: drawn\n", "name: second\n", 1))
    study(join_suites, world.suite, other, "--output", tmp_path / "all")
    one, two, whole = (load_suite(folder) for folder in (world.suite, other, tmp_path / "all"))
    names = [f"{suite.name}_{task.name}" for suite in (one, two) for task in suite.tasks]
    assert [task.name for task in whole.tasks] == names
    for task, origin in zip(whole.tasks, (*one.tasks, *two.tasks), strict=True):
        assert (task.classes, task.template, task.metric) == (origin.classes, origin.template, origin.metric)
        assert task.description == (origin.description or origin.name.replace("_", " "))
    images = [
        (task, record.label, record.path.read_bytes())
        for suite, first in ((one, 0), (two, len(one.tasks)))
        for record in suite.records
        for task in [first + record.task]
    ]
    assert sorted(images) == sorted((r.task, r.label, r.path.read_bytes()) for r in whole.records)


def test_each_task_is_left_out_once_and_results_are_kept(study, world, tmp_path, monkeypatch):
    trained = []
    train = left_out.softcpt.train
    monkeypatch.setattr(
        left_out.softcpt,
        "train",
        lambda suite, *rest, **more: (
            trained.append([task.name for task in suite.tasks]) or train(suite, *rest, **more)
        ),
    )
    command = [world.suite, "--backbone", world.backbone, "--output", tmp_path / "out"]
    command += [
        "--shots",
        2,
        "--folds",
        2,
        "--methods",
        "coop-mt,softcpt-nata",
        "--cache",
        tmp_path / "cache",
    ]
    printed = study(left_out, *command, "--seeds", 1, "epochs=1", "views=1")
    names = [task.name for task in load_suite(world.suite).tasks]
    assert trained == [[names[1]], [names[1]], [names[0]], [names[0]]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    assert [row[0] for row in rows[2:]] == ["Zero-shot", "CoOp-MT", "SoftCPT-NATA"]
    assert len({len(row) for row in rows}) == 1
    assert study(left_out, *command, "--seeds", 1, "epochs=1", "views=1") == printed
    assert len(trained) == 4
    study(left_out, *command, "--seeds", 1, "epochs=2", "views=1")
    assert len(trained) == 8
