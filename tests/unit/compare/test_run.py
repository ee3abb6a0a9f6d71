"""A comparison goes on where it was stopped, and one cell again is the same cell."""

import json
import os
import re
import signal
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest

import softcpt
from softcpt.compare import executor, work
from softcpt.compare.differences import Analysis, analyse
from softcpt.compare.executor import Failure, Processes
from softcpt.compare.learning import rate_rows
from softcpt.compare.report import _lead, _slugs, command_lines, shown_rows
from softcpt.compare.results import Score
from softcpt.compare.rows import Row, parse_rows
from softcpt.compare.run import Stopped
from softcpt.compare.sentences import left_out_lines, note_lines, sharing_lines, split_words
from softcpt.compare.write import write_results
from softcpt.core.errors import ConfigError, Fault, RunError, SoftCPTError, SuiteError
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite
from softcpt.engine.config import keys_of
from softcpt.methods.registry import get_method, list_methods

WHOLE = ("results.json", "results.csv", "table.md")


def cells(folder):
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}


def timeless(results):
    """Everything but how long it took."""
    return {place: {**cell, "seconds": 0, "train_s": 0} for place, cell in results.found.items()}


@pytest.fixture
def counted(monkeypatch):
    """What was done, in order."""
    done = []

    def do(job):
        done.append((job.what, job.label))
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    return done


def test_more_seeds_run_only_those(run, tmp_path, counted):
    run(tmp_path, "coop-mt", seeds=(1,))
    before = cells(tmp_path)
    del counted[:]
    results = run(tmp_path, "coop-mt", seeds=(1, 2))
    assert [label[-6:] for what, label in counted if what == "cell"] == ["seed 2"]
    assert before.items() <= cells(tmp_path).items()
    assert len(results.found) == 2
    del counted[:]
    run(tmp_path, "coop-mt", seeds=(1, 2))
    assert counted == []


def test_a_damaged_cell_is_noticed_and_computed_again_to_the_same_figures(run, tmp_path, counted, caplog):
    first = run(tmp_path, "coop-mt", seeds=(1, 2))
    one, other = sorted((tmp_path / "cells").glob("*.json"))
    one.write_bytes(one.read_bytes()[:-100])
    other.write_text(other.read_text().replace('"n_train": ', '"n_train": 1', 1))
    del counted[:]
    again = run(tmp_path, "coop-mt", seeds=(1, 2))
    assert sum(what == "cell" for what, _ in counted) == 2
    assert timeless(again) == timeless(first)
    assert "computed again" in caplog.text


def test_a_cell_under_another_cells_name_is_not_taken(run, tmp_path, counted):
    run(tmp_path, "coop-mt", seeds=(1, 2))
    one, other = sorted((tmp_path / "cells").glob("*.json"))
    one.write_bytes(other.read_bytes())
    del counted[:]
    run(tmp_path, "coop-mt", seeds=(1, 2))
    assert sum(what == "cell" for what, _ in counted) == 1


def test_one_cell_by_the_ordinary_commands_reproduces_its_figure(run, tmp_path, world):
    results = run(tmp_path / "out", "softcpt-nata", seeds=(7,))
    [cell] = results.found.values()
    trained = softcpt.train(world.loaded, world.backbone, tmp_path / "run", overrides=cell["settings"])
    found = softcpt.evaluate(trained, backbone=world.backbone)
    assert found.score == sum(task["score"] for task in cell["tasks"]) / len(cell["tasks"])
    for task, kept in zip(found.tasks, cell["tasks"], strict=True):
        own = [scored for scored in found.predictions if scored.task == task.name]
        assert kept["right"] == "".join("01"[s.predicted == s.label] for s in own)
        assert [world.loaded.records[i].relative for i in kept["images"]] == [s.image for s in own]


def test_several_processes_give_the_same_cells_as_one(run, tmp_path):
    one = run(tmp_path / "one", "zero-shot,coop-mt", seeds=(1, 2), jobs=1)
    two = run(tmp_path / "two", "zero-shot,coop-mt", seeds=(1, 2), jobs=2)
    assert timeless(one) == timeless(two)


def short(row):
    """Settings of a training of a second, as far as a row knows them and has not said them."""
    [row] = parse_rows([row])
    wanted = {"epochs": "2", "views": "2", "iterations": "3"}
    return {
        key: value
        for key, value in wanted.items()
        if key in keys_of(get_method(row.method)) and key not in dict(row.settings)
    }


def test_image_features_are_there_before_the_cells(run, tmp_path, counted, monkeypatch):
    encoded = []
    real = work.ImageFeatures._compute

    def compute(self, missing, *more):
        encoded.append((counted[-1][0], len(missing)))
        return real(self, missing, *more)

    monkeypatch.setattr("softcpt.engine.features.ImageFeatures._compute", compute)
    run(tmp_path, "zero-shot,coop-mt", shots=(1, 2), seeds=(1, 2))
    assert {what for what, _ in encoded} == {"features"}
    # Every method and head: those of regions, mirror images, and views that no epoch shows.
    heads = [f"coop-mt:head={head}:views=0" for head in ("tip", "ridge", "lp++")]
    heads += [
        "coop-mt:head=logistic:views=1",
        "coop-ca:joint_steps=true:views=4:batch_size=2",
        "tip-adapter:views=3",
        "coop-mt:precision=bf16",
    ]
    for method in [*(method.key for method in list_methods()), *heads]:
        del encoded[:]
        run(tmp_path / method, method, seeds=(1,), settings=short(method))
        assert {what for what, _ in encoded} == {"features"}, method


def test_a_failing_cell_does_not_stop_the_others(run, tmp_path, monkeypatch):
    def do(job):
        if job.what == "cell" and "CoOp-MT" in job.label:
            raise RunError(Fault("all tasks, epoch 1", "the loss is nan"), about="the training")
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    told = []
    results = run(tmp_path, "zero-shot,coop-mt", seeds=(1,), on_failure=lambda label, why: told.append(label))
    assert len(results.found) == 1
    [(label, why)] = results.failed.items()
    assert "the loss is nan" in why
    assert told == [label]
    write_results(tmp_path, results)
    assert "## Failed" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(executor, "do", work.do)
    assert not run(tmp_path, "zero-shot,coop-mt", seeds=(1,)).failed


def test_where_all_cells_fail_the_tables_say_so(run, tmp_path, monkeypatch):
    def do(job):
        if job.what == "cell":
            raise RunError(Fault("all tasks, epoch 1", "the loss is nan"), about="the training")
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    output = tmp_path / "new"
    write_results(output, run(output, "coop-mt", seeds=(1,)))
    assert "the loss is nan" in (output / "table.md").read_text()


def test_all_faults_are_told_before_anything_is_trained(run, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "out", shots=(0,), seeds=(1, 1), settings={"epoch": "3"}, threads=0)
    assert {fault.where for fault in caught.value.faults} >= {"--shots", "--seeds", "--threads"}
    assert not (tmp_path / "out").exists()


def test_two_comparisons_cannot_write_to_one_folder(run, tmp_path):
    def meanwhile(_):
        with pytest.raises(RunError, match="another comparison"):
            run(tmp_path, "coop-mt", seeds=(1,))
        raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, "coop-mt", seeds=(1,), on_estimate=meanwhile)


def test_a_folder_with_other_things_is_left_alone(run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not a comparison's"):
        run(tmp_path, "coop-mt")


def test_the_estimate_counts_what_is_left(run, tmp_path):
    told = []
    run(tmp_path, "zero-shot,coop-mt", seeds=(1,), on_estimate=told.append)
    run(tmp_path, "zero-shot,coop-mt", seeds=(1, 2), on_estimate=told.append)
    run(tmp_path, "zero-shot,coop-mt", seeds=(1, 2), on_estimate=told.append)
    assert [(e.cells, e.found) for e in told] == [(2, 0), (2, 2), (0, 4)]
    assert told[0].core_hours > told[2].core_hours == 0
    assert told[0].views > 0 == told[2].views


def test_groups_of_tasks_are_trained_apart_and_scored_together(run, tmp_path, world):
    rows = [Row("coop-mt"), Row("coop-mt", together=1), Row("coop-mt", together=2)]
    results = run(tmp_path, rows=rows, seeds=(1,))
    name = world.loaded.name
    whole, alone, both = [results.cell(name, row, 1, 1) for row in rows]
    assert [task["name"] for task in alone["tasks"]] == [task.name for task in world.loaded.tasks]
    assert [task["images"] for task in alone["tasks"]] == [task["images"] for task in whole["tasks"]]
    assert alone["n_learned"] == 2 * whole["n_learned"]
    assert [task["right"] for task in both["tasks"]] == [task["right"] for task in whole["tasks"]]


def test_a_suite_that_changed_meanwhile_is_refused(world):
    job = work.Job(
        "cell", "k", "a cell", str(world.suite), "0" * 64, str(world.weights), "w", 1, "cpu", "/nowhere"
    )
    found = executor.attempt(job)
    assert isinstance(found, Failure)
    assert "is not what it was" in found.faults[0].what


def test_a_killed_process_is_replaced_and_its_job_done_by_another(world, tmp_path):
    pool = Processes(1, threads=1)
    jobs = [
        work.Job(
            "cost", str(n), f"job {n}", str(world.suite), "0" * 64, str(world.weights), "w", 1, "cpu", ""
        )
        for n in range(2)
    ]
    try:
        results = pool.each(jobs)
        job, outcome = next(results)
        first = pool._workers[0].process
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        rest = list(results)
        assert [job.key, *(job.key for job, _ in rest)] == ["0", "1"]
        assert all(isinstance(found, Failure) for found in (outcome, *(o for _, o in rest)))
        assert pool._workers[0].process.pid != first.pid
    finally:
        pool.close()


def test_files_hold_fractions_and_can_be_read_by_programs(run, tmp_path):
    results = run(tmp_path, "zero-shot,coop-ca,softcpt-nata", shots=(1, 2), seeds=(1, 2))
    write_results(tmp_path, results)
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content["cells"]) == 12
    assert all(0 <= score["mean"] <= 1 for score in content["scores"])
    assert content["reference"] == "CoOp-CA"
    assert {d["row"] for d in content["differences"]} == {"Zero-shot CLIP", "SoftCPT-NATA"}
    assert all(d["over"] == "images" for d in content["differences"])  # two seeds say nothing of seeds
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 12 * 2
    table = (tmp_path / "table.md").read_text()
    assert "| Method | Parameters | Training (s) | 1 | 2 | Average |" in table
    assert "**" in table
    assert "<u>" in table
    assert "fewer than 5" in table
    first = {name: (tmp_path / name).read_bytes() for name in WHOLE}
    write_results(tmp_path, replace(results))
    assert {name: (tmp_path / name).read_bytes() for name in WHOLE} == first


def test_tasks_below_zero_shot_are_counted_by_their_mean_over_seeds(run, tmp_path):
    results = run(tmp_path / "out", methods="coop-mt", shots=(1,), seeds=(1, 2))
    [row], [suite] = results.rows, results.suites
    # first task: +10 and -12 points, worse in the mean; second: -10 and +10, no worse; others: better
    gains = {1: [0.1, -0.1], 2: [-0.12, 0.1]}
    found = {}
    for seed, of_seed in gains.items():
        cell = results.cell(suite.name, row, 1, seed)
        n_more = len(cell["tasks"]) - 2
        tasks = [
            {**task, "zero_shot": 0.5, "score": 0.5 + gain}
            for task, gain in zip(cell["tasks"], [*of_seed, *[0.2] * n_more], strict=True)
        ]
        found[suite.name, row.label, 1, seed] = {**cell, "tasks": tasks}
    assert replace(results, found=found).harmed(row, 1) == (1, 2 + n_more)


def test_the_effective_rate_of_each_row_is_told(run, tmp_path):
    results = run(tmp_path / "out", methods="zero-shot,coop-ca,softcpt-nata", seeds=(1,))
    coop, nata = rate_rows(results)
    assert coop == ("CoOp-CA", "0.002")
    of_tasks = results.cell(results.suites[0].name, results.rows[2], 1, 1)["learning"][0]["effective_rates"][
        "start"
    ]
    assert nata == ("SoftCPT-NATA", f"{statistics.median(of_tasks.values()):.3g}")
    assert float(nata[1]) != 0.002


def test_no_effective_rate_is_told_of_adamw(run, tmp_path):
    results = run(tmp_path / "out", methods="coop-ca,coop-mt:optimizer=adam", shots=(1, 2), seeds=(1,))
    assert rate_rows(results) == [("CoOp-CA", "0.002", "0.002")]
    # chosen on val, a row may have stepped by AdamW at one number of shots alone
    coop, adam = results.rows
    mixed = {
        place: results.found[(place[0], adam.label, *place[2:])] if place[2] == 2 else cell
        for place, cell in results.found.items()
        if place[1] == coop.label
    }
    assert rate_rows(replace(results, rows=[coop], found=mixed)) == [("CoOp-CA", "0.002", "none")]


def test_notes_of_cells_are_told_once_with_how_many_they_hold_for(run, tmp_path):
    results = run(tmp_path / "out", methods="zero-shot,plot,coop-ca", shots=(1,), seeds=(1, 2))
    [(note, n)] = [(note, n) for note, n in results.cell_notes() if note.startswith("plot sees")]
    assert n == 2
    old = {
        place: {key: value for key, value in cell.items() if key != "notes"}
        for place, cell in results.found.items()
        if place[1] != "PLOT"
    }
    apart = {place: {**cell, "notes": ["the same", "the same"]} for place, cell in old.items()}
    assert replace(results, found=old).cell_notes() == []
    assert replace(results, found=apart).cell_notes() == [("the same", 4)]

    write_results(tmp_path, results)
    said = (tmp_path / "table.md").read_text()
    assert said.count(f"- {note} (2 of 6 cells)\n") == 1
    assert "## Notes of the cells" in said
    assert f"{note} (2 of 6 cells)" in (tmp_path / "report.html").read_text()
    assert {"note": note, "cells": 2} in json.loads((tmp_path / "results.json").read_text())["cell_notes"]
    write_results(tmp_path, replace(results, found=old))
    assert "Notes of the cells" not in (tmp_path / "table.md").read_text()


def test_of_many_notes_the_first_are_shown_and_the_rest_counted():
    lines = note_lines([(f"note {i}", 1) for i in range(23)], 30)
    assert lines[0] == "note 0 (1 of 30 cells)"
    assert lines[20:] == ["and 3 more, all of them in results.json"]


def test_a_page_names_the_command_that_makes_it(run, tmp_path):
    rows = parse_rows(["zero-shot", "coop-ca:init_words=a photo"])
    results = run(tmp_path / "out", rows=rows, seeds=(1,), references=rows[1:], resplit=False)
    *_, methods, last = command_lines(results)
    assert methods == "  --methods 'zero-shot,coop-ca:init_words=a photo' \\"
    assert last == (
        "  --shots 1 --seeds 1 --reference 'coop-ca:init_words=a photo' --no-resplit epochs=2 views=2"
    )
    preset = replace(results, about={**results.about, "preset": "controls", "tuned": True})
    assert "--preset controls" in command_lines(preset)[2]
    assert "--tune" in command_lines(preset)[3]
    elsewhere = replace(results, about={**results.about, "skip_bad_images": True, "device": "cuda"})
    assert "--skip-bad-images --device cuda" in command_lines(elsewhere)[3]
    assert command_lines(replace(results, rows=[Row("coop-ca", name="ours")])) == []


def test_figures_of_many_rows_show_the_best_and_those_asked_about():
    rows = parse_rows([f"coop-ca:lr=0.{n}" for n in range(1, 13)])
    zero, *others = [*parse_rows(["zero-shot"]), *rows]
    results = SimpleNamespace(
        rows=[zero, *others],
        shots=(4,),
        learns=lambda row: row != zero,
        mean_score=lambda row, shots: Score(others.index(row) / 20 if row in others else 0.0, 0.0, 1),
    )
    asked = Analysis([others[0]], [], others[2], others[1], [])
    assert shown_rows(results, asked) == [zero, *others[:3], *others[-4:]]
    assert shown_rows(results, Analysis(others[:9], [], None, None, [])) == [zero, *others[:6], others[-1]]
    results.rows = [zero, *others[:7]]
    assert shown_rows(results, asked) == results.rows


def test_every_table_and_figure_says_what_it_shows_and_where(run, tmp_path):
    results = run(tmp_path / "out", methods="zero-shot,coop-ca,softcpt-nata")
    write_results(tmp_path, results)
    page = (tmp_path / "report.html").read_text()
    captions = re.findall(r"<(?:fig)?caption>(?:<span>)?([^<]*)", page)
    assert len(captions) == page.count("<table>") + page.count("<figure")
    assert len(captions) == len(set(captions)) == 9
    assert all(results.suites[0].name in caption for caption in captions)
    assert page.count("softcpt compare ") == 1


class Nodes:
    """In Ray's place: nodes that have what this machine lacks; they compute on the CPU all the same."""

    def __init__(self, address, *, threads, gpus):
        self.gpus, self.seen = gpus, []
        made.append(self)

    def each(self, jobs):
        for job in jobs:
            self.seen.append(job)
            settings = {key: "cpu" if key == "device" else value for key, value in job.settings.items()}
            yield job, executor.attempt(replace(job, device="cpu", settings=settings))

    def close(self):
        pass


made: list[Nodes] = []


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("softcpt.compare.run.OnRay", Nodes)
    del made[:]


@pytest.mark.usefixtures("without_gpu")
def test_on_ray_the_nodes_need_to_have_the_device_and_this_machine_need_not(run, tmp_path):
    asked = {"seeds": (1,), "jobs": None, "ray": "head:6379"}
    results = run(tmp_path, "coop-mt", device="cuda", **asked)
    [nodes] = made
    assert nodes.gpus == 0.25
    assert {job.device for job in nodes.seen} == {"cuda"}
    assert [job.what for job in nodes.seen] == ["cost", "features", "cell"]
    [cell] = results.found.values()
    assert cell["identity"]["device"] == "cuda"
    assert results.about["device"] == "cuda"
    run(tmp_path, "coop-mt", device="cuda", **asked)
    assert made[1].seen == []
    # What was encoded on this machine's device says nothing of what the nodes have.
    run(tmp_path, "coop-mt", device="cuda", **{**asked, "shots": (2,)})
    first, more = ({i for job in made[n].seen for i, _ in job.views} for n in (0, 2))
    assert first < more
    auto = run(tmp_path, "coop-mt", **asked)
    assert made[3].gpus == 0
    [local] = run(tmp_path, "coop-mt", seeds=(1,)).found.values()
    assert list(auto.found.values()) == [local]  # found again under its key


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("where", [{}, {"ray": "local", "jobs": None}])
def test_a_device_that_this_machine_lacks_is_refused_where_cells_run_here(run, tmp_path, where):
    with pytest.raises(ConfigError, match="this machine has no 'cuda'"):
        run(tmp_path / "out", "coop-mt", device="cuda", **where)
    assert not (tmp_path / "out").exists()


def test_a_suite_without_test_images_is_refused_before_anything_is_trained(run, tmp_path, world):
    records = tuple(replace(r, part=("train", "val")[i % 2]) for i, r in enumerate(world.loaded.records))
    with pytest.raises(SuiteError, match="has no test images to compare on"):
        run(tmp_path / "out", suites=[replace(world.loaded, records=records)])
    assert not (tmp_path / "out").exists()


def test_what_stops_a_comparison_names_its_rows(run, tmp_path, world):
    records = tuple(replace(r, part=("train", "test")[i % 2]) for i, r in enumerate(world.loaded.records))
    with pytest.raises(SoftCPTError) as told:  # not what its folder holds
        run(tmp_path / "out", "zero-shot,coop-mt", suites=[replace(world.loaded, records=records)])
    for label in ("Zero-shot CLIP", "CoOp-MT"):
        assert f"drawn, {label}, 1 shot, seed 1: " in str(told.value)


def test_two_suites_have_files_of_their_own():
    assert _slugs(["Leaf 1", "leaf-1", "LEAF 1", "?"]) == ["leaf-1", "leaf-1-1", "leaf-1-2", "suite-3"]


def test_groups_of_tasks_have_the_split_of_the_whole_suite(run, tmp_path):
    results = run(tmp_path / "out", rows=[Row("coop-mt"), Row("coop-mt", together=1)], seeds=(1, 2))
    assert not [note for note, _ in results.cell_notes() if "split_seed" in note]
    for seed in (1, 2):
        name = results.suites[0].name
        whole, apart = (results.cell(name, row, 1, seed)["tasks"] for row in results.rows)
        assert [task["images"] for task in whole] == [task["images"] for task in apart]


def test_who_decides_the_split_is_said(world):
    given = replace(world.loaded, records=tuple(replace(r, part="test") for r in world.loaded.records))
    for suites, resplit, said in (
        ([world.loaded], True, "a new one each seed"),
        ([world.loaded, given], False, "one for all seeds"),
        ([given], True, "as given"),
    ):
        assert split_words(SimpleNamespace(suites=suites, about={"resplit": resplit})) == said


def test_of_equal_rows_none_is_called_the_best():
    rows = parse_rows(["coop-ca", "coop-mt", "zero-shot"])
    results = SimpleNamespace(
        rows=rows,
        shots=(4,),
        seeds=(1,),
        about={"quick": False},
        mean_score=lambda row, shots: Score(0.2 if row == rows[2] else 0.5, 0.0, 1),
    )
    said = _lead(results, Analysis([], [], None, None, []))
    assert said.startswith("CoOp-CA and 1 more score highest at 4 shots")


def test_a_suite_of_one_task_is_left_out_of_the_question_of_sharing(world, run, tmp_path):
    whole = world.loaded
    folder = draw_suite(tmp_path / "suite", tasks=["shape"], images_per_class=10, size_px=32)
    said = (folder / "suite.yaml").read_text(encoding="utf-8")
    (folder / "suite.yaml").write_text(said.replace("drawn", "one"), encoding="utf-8")
    one = load_suite(folder)
    found = write_results(tmp_path, run(tmp_path / "out", "coop-mt,coop-ca", suites=[whole, one]))
    assert {d.suite for d in found.sharing} == {whole.name}
    said = "Left out, of one task, which has nothing to share with: one."
    assert left_out_lines(found) == [said]
    assert said in sharing_lines(found)
    page = re.sub(r"<[^>]+>", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert said in page
    # for want of a row, and not for want of tasks
    found = analyse(run(tmp_path / "without", "zero-shot,coop-ca", suites=[whole, one]))
    assert not found.single
    assert sharing_lines(found)[0].startswith("Not asked here: it takes a row that shares")


def test_a_row_that_lacks_seeds_is_not_called_the_best():
    rows = parse_rows(["zero-shot", "coop-ca"])
    scores = {rows[0]: Score(0.5, 0.0, 3), rows[1]: Score(0.9, 0.0, 2)}
    results = SimpleNamespace(
        rows=rows,
        shots=(4,),
        seeds=(1, 2, 3),
        about={"quick": False},
        mean_score=lambda row, shots: scores[row],
    )
    said = _lead(results, Analysis([], [], None, None, []))
    assert said.startswith("Zero-shot CLIP scores highest")
