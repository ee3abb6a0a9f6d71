"""Choosing on val: the same budget for all, published settings win ties, and no look at a test image."""

import json
import shutil
from dataclasses import replace

import pytest

from softcpt.compare import executor, tune, work
from softcpt.compare.learning import chosen_rows, itself_sentence
from softcpt.compare.rows import Row, parse_rows
from softcpt.compare.tune import (
    NOTHING,
    choose,
    combinations,
    grid_of,
    points_of,
    published_point,
    tries_faults,
)
from softcpt.compare.write import write_results
from softcpt.core.errors import ConfigError, Fault, RunError, SuiteError
from softcpt.engine.config import resolve
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.prepare import plan_run
from softcpt.methods.base import TRIALS
from softcpt.methods.registry import get_method, lend, list_methods

TWO = combinations({"lr": ("0.002", "0.2")})


@pytest.fixture
def two_rates(monkeypatch):
    monkeypatch.setattr(tune, "SGD", TWO)
    monkeypatch.setattr(tune, "ADAM", [])


@pytest.mark.parametrize("method", [method.key for method in list_methods()])
def test_every_point_of_every_method_can_be_run(method):
    points = grid_of(method)
    assert 1 <= len(points) <= TRIALS
    for point in points:
        resolve({"method": method, **point})


def test_the_best_on_val_is_chosen():
    assert choose([0.5, 0.7, 0.6], published=0) == 1


def test_of_equals_the_published_setting_is_chosen_else_the_most_regularised():
    assert choose([0.5, 0.7, 0.7], published=2) == 2
    assert choose([0.5, 0.7, 0.7], published=0) == 1
    assert choose([0.7, 0.7, 0.7], published=None) == 0


def test_the_published_point_is_found_by_value():
    assert published_point(TWO, {"lr": 0.002, "views": 16}) == 0
    assert published_point(TWO, {"lr": 2e-1}) == 1
    assert published_point(TWO, {"lr": 0.5}) is None


def test_what_is_given_is_not_tuned():
    assert points_of(Row("coop-mt"), {"lr": "0.01"}) == [{}]
    assert points_of(Row("coop-mt", (("lr", "0.01"),)), {}) == [{}]


def test_a_row_may_say_what_is_tried_instead():
    [row] = parse_rows(["softcpt-dual:kernel=rho:share=0.2/0.8:lr=0.002/0.02"])
    assert row.settings == (("kernel", "rho"),)
    assert row.label == "SoftCPT-dual, kernel=rho, lr=0.002/0.02, share=0.2/0.8"
    points = points_of(row, {})
    assert len(points) == 4
    assert {"share": "0.8", "lr": "0.002"} in points


@pytest.mark.parametrize(
    ("word", "given", "tune", "said"),
    [
        ("coop-mt:lr=0.1/0.2", {}, False, "--tune"),
        ("coop-mt:lr=0.1/0.1", {}, True, "twice"),
        ("coop-mt:lr=0.1/0.2", {"lr": "0.3"}, True, "for all methods"),
        ("coop-mt:lr=1/2/3/4:epochs=1/2/3/4", {}, True, "12"),
    ],
)
def test_what_cannot_be_tried_is_refused(word, given, tune, said):
    [fault] = tries_faults(parse_rows([word]), given, tune=tune)
    assert said in f"{fault.where} {fault.what} {fault.fix}"


def test_values_that_a_method_does_not_know_are_refused_before_anything_is_trained(run, tmp_path):
    with pytest.raises(ConfigError, match="lr"):
        run(tmp_path / "out", methods="coop-mt:lr=0.1/quick", tune=True)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))


def test_the_value_that_did_best_on_val_is_in_the_row(run, tmp_path):
    results = run(
        tmp_path / "out", methods="zero-shot,coop-mt:lr=0.001/0.05", shots=(4,), seeds=(1,), tune=True
    )
    published, tuned = results.rows[1:]
    name = results.suites[0].name
    trials = {}
    for file in (tmp_path / "out" / "trials").glob("*.json"):
        content = json.loads(file.read_text())
        trials[content["identity"]["settings"]["lr"]] = content["val_score"]
    assert set(trials) == {0.001, 0.05}
    best = max(sorted(trials), key=lambda rate: trials[rate])
    assert results.cell(name, published, 4, 1)["identity"]["settings"]["lr"] == 0.002
    assert results.cell(name, tuned, 4, 1)["identity"]["settings"]["lr"] == best
    assert chosen_rows(results) == [(f"{tuned.label} (2 trainings a choice)", f"lr={best} (1)")]
    write_results(tmp_path / "out", results)
    for name in ("table.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert f"lr={best} (1)" in text
        assert "(2 trainings a choice)" in text


@pytest.mark.parametrize("method", ["coop-mt", "plot", "softcpt-dual", "softcpt-nata", "softcpt-star"])
def test_methods_that_say_nothing_have_their_rate_chosen_with_both_optimizers(method):
    points = grid_of(method)
    assert len(points) == 10
    values = {key: entry["value"] for key, entry in resolve({"method": method}).stored().items()}
    assert published_point(points, values) == 0
    rates = [float(point["lr"]) for point in points if point["optimizer"] == "sgd"]
    assert rates == pytest.approx([0.002 * factor for factor in (1, 3, 10, 30, 100)])
    of_weights = method in ("softcpt-nata", "softcpt-star")
    assert [float(p["lr"]) < 2e-4 for p in points[5:]] == [of_weights and n < 3 for n in range(5)]
    assert {point["optimizer"] for point in points[5:]} == {"adam"}


def test_a_rate_of_sgd_is_the_training_it_always_was(grid):
    """Trials that were stored before AdamW was tried are found again."""
    cells = [grid().cell(grid().places[0], Row("coop-mt"), 4, 1, p) for p in ({"lr": "0.02"}, tune.SGD[2])]
    assert cells[0].key == cells[1].key


def test_of_an_optimizer_that_is_given_only_its_own_rates_are_tried():
    assert points_of(Row("coop-mt"), {"optimizer": "adam"}) == [{"lr": p["lr"]} for p in tune.ADAM]
    assert points_of(Row("coop-mt", (("optimizer", "sgd"),)), {"optimizer": "adam"}) == [
        {"lr": p["lr"]} for p in tune.SGD
    ]


def test_methods_without_a_training_have_nothing_tuned():
    assert grid_of("zero-shot") is NOTHING
    assert grid_of("lp-clip") is NOTHING


def test_a_method_says_what_is_tried_of_it():
    assert len(grid_of("prograd")) == TRIALS
    own = replace(get_method("coop-mt"), key="own", tunes={"context_length": ("4", "16")})
    with lend(own):
        assert points_of(Row("own"), {}) == [{"context_length": "4"}, {"context_length": "16"}]


def test_a_method_cannot_tune_what_it_does_not_know_nor_more_than_others():
    own = replace(get_method("coop-mt"), key="own", tunes={"rank": tuple("123456789"), "lr": ("1", "2")})
    with lend(own), pytest.raises(ConfigError) as error:
        grid_of("own")
    assert [fault.where for fault in error.value.faults] == ["rank", "tunes"]


def test_rows_as_published_and_as_tuned_stand_side_by_side(run, tmp_path, two_rates):
    results = run(tmp_path / "out", methods="zero-shot,coop-mt", shots=(1, 4), seeds=(1,), tune=True)
    assert [row.label for row in results.rows] == [
        "Zero-shot CLIP",
        "CoOp-MT",
        "CoOp-MT, tuned on val",
        "CoOp-MT, tuned at 4 shots",
    ]
    published, tuned, at_four = results.rows[1:]
    name = results.suites[0].name
    for shots, source, row in ((1, 1, tuned), (4, 4, tuned), (1, 4, at_four), (4, 4, at_four)):
        trials = {}
        for folder in ("cells", "trials"):
            for file in (tmp_path / "out" / folder).glob("*.json"):
                content = json.loads(file.read_text())
                settings = content["identity"]["settings"]
                if settings["method"] == "coop-mt" and settings["shots"] == source:
                    trials[settings["lr"]] = content["val_score"]
        assert set(trials) >= {0.002, 0.2}
        best = 0.002 if trials[0.002] >= trials[0.2] else 0.2
        assert float(results.cell(name, row, shots, 1)["identity"]["settings"]["lr"]) == best
        assert results.cell(name, published, shots, 1)["identity"]["settings"]["lr"] == 0.002


def test_trials_encode_no_test_image_and_evaluate_nothing(run, tmp_path, two_rates, world, monkeypatch):
    """Features of a trial are asked for by digest: none is a test image's, and only cells are evaluated."""
    out = tmp_path / "out"
    run(out, methods="coop-mt", shots=(4,), seeds=(1,))  # features and the published row are there now
    asked, evaluated, during = set(), [], []
    real_get, real_do, real_evaluate = FeatureCache.get, work.do, work.evaluate

    def get(self, encoder, keys):
        if during and during[-1] == "trial":
            asked.update(digest for digest, _ in keys)
        return real_get(self, encoder, keys)

    def do(job):
        during.append(job.what)
        try:
            return real_do(job)
        finally:
            during.append("")

    def evaluate(run_, **more):
        evaluated.append(during[-1])
        return real_evaluate(run_, **more)

    monkeypatch.setattr(FeatureCache, "get", get)
    monkeypatch.setattr("softcpt.compare.executor.do", do)
    monkeypatch.setattr(work, "evaluate", evaluate)
    run(out, methods="coop-mt", shots=(4,), seeds=(1,), tune=True)
    assert during.count("trial") == 1  # the published rate was trained as a cell already
    assert asked
    settings = resolve({"method": "coop-mt", "shots": 4, "seed": 1, "split_seed": 1})
    test = {record.digest for record in plan_run(world.loaded, settings).samples.test}
    assert not asked & test
    assert "trial" not in evaluated
    assert evaluated.count("cell") == during.count("cell") <= 1


def test_tuning_without_val_images_is_refused(run, tmp_path, world, two_rates):
    shutil.copytree(world.suite, tmp_path / "images")
    lines = ["image,task,class,split"]
    for i, record in enumerate(world.loaded.records):
        task = world.loaded.tasks[record.task]
        part = "test" if i % 2 else "train"
        lines.append(f"images/{record.relative},{task.name},{task.classes[record.label]},{part}")
    (tmp_path / "given.csv").write_text("\n".join(lines) + "\n")
    given = {"seeds": (1,), "tune": True, "suites": [tmp_path / "given.csv"]}
    with pytest.raises(SuiteError, match="no val images to choose settings by"):
        run(tmp_path / "out", "coop-mt", **given)
    assert not (tmp_path / "out").exists()  # nothing was trained
    assert run(tmp_path / "out", "coop-mt:lr=0.002", **given).found  # nothing is left to choose


def test_a_group_of_tasks_without_val_images_is_refused_too(run, tmp_path, world, two_rates):
    records = tuple(
        replace(r, part=("train", "test")[i % 2] if r.task == 0 else ("train", "val", "test")[i % 3])
        for i, r in enumerate(world.loaded.records)
    )
    half = replace(world.loaded, records=records)
    rows = [Row("coop-mt", together=1)]
    with pytest.raises(SuiteError, match="no val images to choose settings by"):
        run(tmp_path / "out", rows=rows, seeds=(1,), tune=True, suites=[half])
    assert not (tmp_path / "out").exists()


def test_a_failed_training_on_val_and_the_rows_it_blocks_are_told(run, tmp_path, monkeypatch):
    def do(job):
        if job.what == "trial" and job.settings["lr"] == "0.05":
            raise RunError(Fault("all tasks, epoch 1", "the loss is nan"), about="the training")
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    given = {"methods": "coop-mt:lr=0.001/0.05", "shots": (1,), "seeds": (1,), "tune": True}
    results = run(tmp_path / "out", **given)
    assert [row.tuning for row in results.rows] == ["published"]
    row, name = results.rows[0].label, results.suites[0].name
    assert list(results.failed) == [
        f"{name}, {row}, 1 shot, seed 1, lr=0.05",
        f"{name}, {row}, 4 shots, seed 1, lr=0.05",
        f"{name}, {row}, tuned on val, 1 shot, seed 1",
        f"{name}, {row}, tuned at 4 shots, 1 shot, seed 1",
    ]
    reasons = list(results.failed.values())
    assert "the loss is nan" in reasons[0]
    assert "1 of 2 trainings on val failed" in reasons[2]
    monkeypatch.setattr(executor, "do", work.do)
    again = run(tmp_path / "out", **given)
    assert not again.failed
    assert len(again.rows) == 3


def test_a_failed_cell_with_chosen_settings_is_told_once(run, tmp_path, monkeypatch):
    """It has the key of the training that chose them, which did not fail."""

    def do(job):
        if job.what == "cell" and job.settings.get("lr") == "0.05":
            raise RunError(Fault("the disk", "is full"), about="the test")
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    monkeypatch.setattr("softcpt.compare.run.choose", lambda scores, published: 1)
    methods = "coop-mt:lr=0.002/0.05"
    results = run(tmp_path / "out", methods, shots=(4,), seeds=(1,), tune=True)
    assert list(results.failed) == [
        f"{results.suites[0].name}, {results.rows[1].label}, 4 shots, seed 1, lr=0.05"
    ]
    assert results.rows[1].tuning == "tuned"


def test_a_factor_of_the_rate_is_not_tuned_away():
    assert points_of(Row("coop-mt", (("lr_factor", "10"),)), {}) == [{}]


def test_rows_that_choose_on_val_by_themselves_are_named_with_what_they_chose(run, tmp_path):
    methods = (
        "zero-shot,coop-mt,mvlpt,tip-adapter,tip-adapter:tune=published,clap,ridge,"
        "coop-mt:head=tip,lp-plus-plus:keep=last"
    )
    results = run(tmp_path / "out", methods=methods, shots=(4,), seeds=(1,))
    said = itself_sentence(results)
    assert said.endswith(": MVLPT (text); Tip-Adapter; CoOp-MT, head=tip.")
    records = [
        record
        for part in results.cell(results.suites[0].name, results.rows[3], 4, 1)["learning"]
        for record in part["tuned"].values()
    ]
    alpha = records[0]["alpha"]  # one for the suite
    (tip, chosen), (with_head, _) = chosen_rows(results)
    assert tip == "Tip-Adapter, by itself"
    assert f"alpha={alpha:.3g} ({alpha:.3g} to {alpha:.3g})" in chosen
    assert "accuracy" not in chosen
    assert with_head == "CoOp-MT, head=tip, by itself"
    write_results(tmp_path / "out", results)
    for name in ("table.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert said in text
        assert "Tip-Adapter, by itself" in text
