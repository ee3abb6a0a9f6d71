"""Cells: whatever changes a result changes the key, and nothing else does."""

from dataclasses import replace

import pytest

from softcpt.compare import identity
from softcpt.compare.presets import PRESETS
from softcpt.compare.rows import Row, parse_rows
from softcpt.core.errors import ConfigError
from softcpt.methods.outside import Package


def key(grid, row=None, shots=1, seed=1):
    return grid.cell(grid.places[0], row or grid.rows[0], shots, seed).key


def renamed(suite, **changes):
    return replace(suite, tasks=(replace(suite.tasks[0], **changes), *suite.tasks[1:]))


def moved(suite, **changes):
    return replace(suite, records=(replace(suite.records[0], **changes), *suite.records[1:]))


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"epochs": "3", "views": "2"}},
        {"settings": {"epochs": "2", "views": "2", "lr": "0.01"}},
        {"settings": {"epochs": "2", "views": "2", "precision": "bf16"}},
        {"settings": {"epochs": "2", "views": "2", "text_encoder": "plain"}},
        {"settings": {"epochs": "2", "views": "2", "draw": "published"}},
        {"settings": {"epochs": "2", "views": "2", "context_length": "4"}},
        {"rows": [Row("softcpt-nats")]},
        {"rows": [Row("softcpt-nata", (("task_text", "name"),))]},
        {"rows": [Row("softcpt-nata", together=1)]},
        {"weights": "v" * 64},
        {"device": "cuda"},
        {"threads": 2},
        {"resplit": False},
    ],
    ids=str,
)
def test_a_setting_that_changes_the_result_changes_the_key(grid, changes):
    assert key(grid(**changes)) != key(grid())


def test_shots_and_seed_change_the_key(grid):
    assert len({key(grid(), shots=shots, seed=seed) for shots in (1, 2) for seed in (1, 2)}) == 4


def test_a_seed_draws_its_own_split_unless_told_otherwise(grid):
    fixed = grid(resplit=False)
    own = [grid().cell(grid().places[0], Row("coop-mt"), 1, seed) for seed in (3, 4)]
    same = [fixed.cell(fixed.places[0], Row("coop-mt"), 1, seed) for seed in (3, 4)]
    assert [cell.resolved.data.split_seed for cell in own] == [3, 4]
    assert [cell.resolved.data.split_seed for cell in same] == [0, 0]
    assert [cell.resolved.run.seed for cell in same] == [3, 4]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, name="other"),
        lambda s: renamed(s, name="other"),
        lambda s: renamed(s, description="shapes of things"),
        lambda s: renamed(s, template="a sketch of one {}."),
        lambda s: renamed(s, metric="mean_acc"),
        lambda s: renamed(s, classes=tuple(reversed(s.tasks[0].classes))),
        lambda s: moved(s, part="test"),
        lambda s: moved(s, group="g"),
        lambda s: moved(s, relative="elsewhere.png"),
        lambda s: moved(s, label=1),
        lambda s: moved(s, path=s.records[1].path),  # other bytes
        lambda s: replace(s, records=s.records[1:]),
    ],
)
def test_whatever_the_suite_says_or_shows_is_part_of_the_key(grid, world, change):
    assert key(grid(suite=change(world.loaded))) != key(grid())


def test_the_version_of_results_is_part_of_the_key(grid, monkeypatch):
    before = key(grid())
    monkeypatch.setattr(identity, "RESULTS_VERSION", identity.RESULTS_VERSION + 1)
    assert key(grid()) != before


def test_a_package_and_its_version_are_part_of_the_key_of_its_methods_alone(grid, monkeypatch):
    def found():
        return grid().cell(grid().places[0], grid().rows[0], 1, 1).identity

    ours = found()
    said = ["results", "suite", "backbone", "settings", "together", "threads", "device"]
    assert list(ours) == said  # cells that are kept are found under these
    monkeypatch.setattr(identity, "package_of", lambda key: Package("own", "1.0"))
    assert found() == {**ours, "package": ["own", "1.0"]}


def test_names_and_places_are_no_part_of_the_key(grid, world, tmp_path):
    elsewhere = replace(world.loaded, root=tmp_path, source=tmp_path, notes=("something",))
    assert key(grid(backbone="another place", suite=elsewhere)) == key(grid())
    assert key(grid(), Row("softcpt-nata", name="ours", tuning="tuned")) == key(grid())


def test_a_setting_given_at_its_default_is_the_same_cell(grid):
    settings = {"epochs": "2", "views": "2", "lr": "0.002"}
    assert key(grid(settings=settings)) == key(grid())


def test_what_learns_nothing_is_one_cell_for_all_shots_but_not_for_all_splits(grid):
    row = Row("zero-shot")
    assert key(grid(), row, shots=1) == key(grid(), row, shots=16)
    assert key(grid(), row, seed=1) != key(grid(), row, seed=2)
    fixed = grid(resplit=False)
    assert key(fixed, row, seed=1) == key(fixed, row, seed=2)


def test_settings_reach_the_methods_that_know_them(grid):
    both = grid(rows=[Row("zero-shot"), Row("coop-mt")], settings={"epochs": "2"})
    zero, coop = [both.cell(both.places[0], row, 1, 1).settings for row in both.rows]
    assert "epochs" not in zero
    assert coop["epochs"] == "2"


def test_all_faults_of_the_settings_come_at_once(grid):
    with pytest.raises(ConfigError) as caught:
        grid(settings={"epoch": "2", "seed": "3", "split_seed": "1"}).check()
    assert [fault.where for fault in caught.value.faults] == ["seed", "split_seed", "epoch"]


def test_rows_that_cannot_be_are_all_named(grid):
    rows = [Row("softcpt-nata", (("lr", "-1"),)), Row("coop-mt", (("meta", "lin"),))]
    with pytest.raises(ConfigError) as caught:
        grid(rows=rows).check()
    assert [fault.where for fault in caught.value.faults] == ["lr", "meta"]


def test_two_suites_of_one_name_are_refused(grid):
    place = grid().places[0]
    with pytest.raises(ConfigError, match="two suites have this name"):
        grid(places=[place, place]).check()


def test_rows_are_read_with_their_settings():
    rows = parse_rows(["zero-shot", "coop-ca:lr=0.02:context_length=4"])
    assert [row.label for row in rows] == ["Zero-shot CLIP", "CoOp-CA, context_length=4, lr=0.02"]
    assert rows[1].settings == (("context_length", "4"), ("lr", "0.02"))


def test_faults_of_all_rows_are_told_together():
    with pytest.raises(ConfigError) as caught:
        parse_rows(["coop-xx", "coop-ca:lr", "coop-mt", "coop-mt"])
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    "word", ["seed=7", "shots=3", "device=cuda", "method=coop-mt", "split_seed=9", "split=all"]
)
def test_rows_may_not_say_what_belongs_to_the_comparison(grid, word):
    key_, _, _ = word.partition("=")
    with pytest.raises(ConfigError, match=key_):
        grid(rows=parse_rows(["zero-shot", f"coop-ca:{word}"]), resplit=False).check()


def test_a_split_without_test_images_is_refused_before_anything_is_trained(grid):
    with pytest.raises(ConfigError, match="leaves no test images"):
        grid(settings={"split": "all"}).check()


def test_rows_that_would_see_other_images_are_refused(grid):
    rows = parse_rows(["coop-ca", "softcpt-nata:recipe=published"])
    with pytest.raises(ConfigError, match="see different images"):
        grid(rows=rows, settings={}).check()
    grid(rows=rows, settings={"draw": "published"}).check()


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_of_presets_see_the_same_images_and_views(grid, preset):
    rows = PRESETS[preset].rows()
    of_rows = grid(rows=rows, settings=PRESETS[preset].settings)
    of_rows.check()
    seen = {
        (cell.resolved.data.draw, cell.resolved.data.split_seed, cell.resolved.train.views)
        for cell in of_rows.cells()
        if cell.resolved.train
    }
    assert len(seen) == 1


def test_quick_trainings_are_those_of_the_loop(grid):
    rows = parse_rows(["coop-mt", "clap", "tip-adapter-f", "coop-ca:epochs=7"])
    quick = grid(rows=rows, settings={}, trained={"epochs": "10"})
    epochs = [cell.settings.get("epochs") for cell in quick.cells()]
    assert epochs == ["10", None, None, "7"]


def test_groups_of_tasks_would_see_other_images_by_the_published_draw(grid):
    rows = [Row("softcpt-nata"), Row("softcpt-nata", together=1)]
    grid(rows=rows).check()
    with pytest.raises(ConfigError, match="draws other images where fewer tasks are trained together"):
        grid(rows=rows, settings={"draw": "published"}).check()


def test_a_suite_is_not_called_as_the_mean_is(grid):
    place = grid().places[0]
    called = replace(place, suite=replace(place.suite, name="all suites"))
    with pytest.raises(ConfigError, match="is what tables call the mean"):
        grid(places=[place, called]).check()
    grid(places=[called]).check()


def test_val_chooses_nothing_for_what_learns_of_no_images(grid):
    rows = parse_rows(["zero-shot-ensemble:templates=selected/imagenet", "coop-ca:lr=0.002/0.02"])
    with pytest.raises(ConfigError) as caught:
        grid(rows=rows).check()
    assert [fault.where for fault in caught.value.faults] == [
        "Zero-shot CLIP (ensemble), templates=selected/imagenet, templates"
    ]


@pytest.mark.parametrize(
    "pair", [("lr", "inf"), ("weight_decay", "inf"), ("warmup_lr", "inf"), ("momentum", "nan")]
)
def test_rates_are_finite(grid, pair):
    with pytest.raises(ConfigError) as caught:
        grid(rows=[Row("coop-ca", (pair,))]).check()
    assert [fault.where for fault in caught.value.faults] == [pair[0]]
