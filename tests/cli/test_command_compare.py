"""softcpt compare: what is said, what is written, and what is refused."""

import json
import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from softcpt.app.cli import compare as command
from softcpt.compare import published
from softcpt.compare.presets import PUBLISHED, ablation_rows, control_rows, published_rows, rate_rows
from softcpt.compare.rows import Row
from softcpt.compare.run import Request
from softcpt.compare.tables import row_words
from softcpt.core.errors import ConfigError, Fault, RunError
from softcpt.data.drawn import draw_suite
from softcpt.engine.config import keys_of, resolve
from softcpt.methods.registry import get_method, list_methods

ROOT = Path(__file__).parents[2]
FAST = ("epochs=1", "views=1", "--jobs", "1")


@pytest.fixture
def compare(softcpt, world):
    def run(output, *more, suites=None):
        where = [*(suites or [world.suite]), "--backbone", world.backbone, "--output", output]
        return softcpt("compare", *where, *FAST, *more)

    return run


def test_a_table_a_page_and_files_come_out(compare, tmp_path):
    out = tmp_path / "out"
    ended = compare(out, "--methods", "zero-shot,coop-ca,softcpt-nata", "--shots", "1,2", "--seeds", "1,2")
    assert ended.code == 0, ended.err
    assert ended.out == (out / "table.md").read_text()
    assert "| Method | Parameters | Training (s) | 1 | 2 | Average |" in ended.out
    assert "## Does sharing help me?" in ended.out
    assert "## Tasks below zero-shot" in ended.out
    assert re.search(r"10 cells to run, 0 there already.*about \d+\.\d\d core-hours", ended.err)
    assert json.loads((out / "results.json").read_text())["seeds"] == [1, 2]
    assert (out / "results.csv").read_text().startswith("suite,method,row,")
    page = (out / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "Does sharing help me?" in page
    assert "What is worse than before" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {name.partition("-")[0] for name in drawn} == {"accuracy", "gains", "parameters", "time"}
    for path in (out / "figures").iterdir():
        assert path.read_text().startswith("<svg ")
        assert "var(--" not in path.read_text()

    again = compare(out, "--methods", "zero-shot,coop-ca,softcpt-nata", "--shots", "1,2", "--seeds", "1,2")
    assert again.out == ended.out
    assert "0 cells to run, 10 there already" in again.err


def test_a_dry_run_says_what_it_would_take_and_trains_nothing(compare, tmp_path):
    ended = compare(tmp_path / "out", "--dry-run", "--methods", "coop-mt", "--shots", "1", "--seeds", "1")
    assert ended.code == 0
    assert ended.out == ""
    assert "core-hours" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_quick_look_is_small_and_says_so(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "DEFAULT_METHODS", "zero-shot,coop-mt")
    ended = compare(tmp_path / "out", "--quick", "--quiet")
    assert ended.code == 0, ended.err
    assert "not for conclusions" in ended.out
    assert "| Method | Parameters | Training (s) | 4 |" in ended.out
    assert ended.err == ""
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["settings"] == {"epochs": "1", "views": "1"}  # what is given wins
    assert (content["seeds"], content["shots"]) == ([1], [4])


def test_a_quick_look_trains_short_and_fits_heads_whole(softcpt, world, tmp_path):
    rows = ("--methods", "coop-mt,lp-clip", "--jobs", "1", "--shots", "1", "views=1")
    where = (world.suite, "--backbone", world.backbone, "--output", tmp_path / "out")
    ended = softcpt("compare", *where, *rows, "--quick")
    assert ended.code == 0, ended.err
    assert "where nothing else is given: `epochs=10`" in ended.out
    cells = [json.loads(path.read_text())["identity"] for path in (tmp_path / "out" / "cells").iterdir()]
    epochs = {cell["settings"]["method"]: cell["settings"].get("epochs") for cell in cells}
    assert epochs == {"coop-mt": 10, "lp-clip": None}


def test_rows_with_settings_and_tuned_rows(compare, tmp_path, monkeypatch):
    from softcpt.compare import tune

    monkeypatch.setattr(tune, "SGD", [{"lr": "0.002"}, {"lr": "0.2"}])
    monkeypatch.setattr(tune, "ADAM", [])
    rows = "coop-mt,coop-mt:context_length=4"
    ended = compare(tmp_path / "out", "--methods", rows, "--shots", "4", "--seeds", "1", "--tune")
    assert ended.code == 0, ended.err
    labels = re.findall(r"^\| (CoOp-MT[^|]*) \|", ended.out, re.MULTILINE)
    assert labels[:4] == [
        "CoOp-MT",
        "CoOp-MT, tuned on val",
        "CoOp-MT, context_length=4",
        "CoOp-MT, context_length=4, tuned on val",
    ]


def test_a_choice_that_could_not_be_made_ends_with_5(compare, tmp_path, monkeypatch):
    from softcpt.compare import executor, work

    def do(job):
        if job.what == "trial":
            raise RunError(Fault("all tasks, epoch 1", "the loss is nan"), about="the training")
        return work.do(job)

    monkeypatch.setattr(executor, "do", do)
    rows = "coop-mt:lr=0.001/0.05"
    ended = compare(tmp_path / "out", "--methods", rows, "--shots", "4", "--seeds", "1", "--tune")
    assert ended.code == 5
    assert "nothing was chosen: 2 of 2 trainings on val failed" in ended.out
    assert "3 cells or trainings on val failed" in ended.err


def test_all_faults_of_a_command_line_are_told(compare, tmp_path):
    ended = compare(tmp_path / "out", "epoch=3", "--shots", "0", suites=[tmp_path / "nowhere"])
    assert ended.code == 2
    assert "nowhere" in ended.err
    assert "--shots" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "coop-xx"), "did you mean"),
        (("--shots", "one"), "no list of numbers"),
        (("--methods", "coop-mt:lr"), "is not key=value"),
        (("epoch=3",), "no method of this comparison has such an option"),
        (("split_seed=3",), "every seed draws its own split"),
        (("shots=3",), "is an option of the comparison"),
        (("--preset", "ablation", "--methods", "coop-mt"), "has its own rows"),
        (("--gpus", "0.5"), "is for cells on Ray"),
        (("--ray",), "Ray runs as many cells at a time as it has room for"),
        (("--preset", "published-table"), "no suite of this name was published"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_a_reason(compare, tmp_path, words, said):
    ended = compare(tmp_path / "out", *words)
    assert ended.code == 2
    assert said in ended.err


@pytest.fixture
def on_ray(softcpt, world):
    def run(output, address):
        where = (world.suite, "--backbone", world.backbone, "--output", output)
        return softcpt("compare", *where, "--ray", *address, "--methods", "coop-mt")

    return run


def test_a_cluster_that_does_not_answer_is_said_at_once(on_ray, tmp_path):
    pytest.importorskip("ray", reason="needs softcpt[ray]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended = on_ray(tmp_path / "out", [f"127.0.0.1:{port}"])
    assert ended.code == 2
    assert "nothing answers" in ended.err


def test_ray_that_is_not_there_is_named(on_ray, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    ended = on_ray(tmp_path / "out", [])
    assert ended.code == 2
    assert "softcpt[ray]" in ended.err


def test_our_table_stands_beside_the_published_one(compare, own_suite, tmp_path, monkeypatch):
    (own_suite / "suite.yaml").write_text("name: fashion_20\n")
    monkeypatch.setattr(
        "softcpt.compare.presets.PUBLISHED", {k: PUBLISHED[k] for k in ("zero-shot", "coop-ca")}
    )
    ended = compare(
        tmp_path / "out", "--preset", "published-table", "--shots", "1", "--seeds", "1", suites=[own_suite]
    )
    assert ended.code == 0, ended.err
    beside = ended.out.partition("## fashion_20 beside the published table")[2]
    row = re.search(r"^\| CoOp-CA \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", beside, re.MULTILINE)
    assert "| 1 | Average (published: of 1, 2, 4, 8, 16) |" in beside
    assert row[1] == "2,048 / 163,840"
    assert re.fullmatch(r"\d+\.\d / 50\.50 ± 0\.63", row[2])
    assert row[3].endswith(" / 59.95 ± 1.11")
    assert re.search(r"^\| ZS-CLIP \| [^|]* \| – \| \d+\.\d / 45\.49 \|$", beside, re.MULTILINE)  # noqa: RUF001
    assert re.search(r"^\| PLOT \| – / 655,360 \| – / 52\.46 ± 0\.81 \|", beside, re.MULTILINE)  # noqa: RUF001
    assert "beside the published table" in (tmp_path / "out" / "report.html").read_text()


def test_published_averages_are_those_of_their_columns():
    for suite in published.published_figures()["suites"].values():
        for name, figures in suite["methods"].items():
            if name != "ZS-CLIP":
                mean = sum(figures[s][0] for s in ("1", "2", "4", "8", "16")) / 5
                assert abs(mean - figures["average"][0]) < 0.011, name


def test_all_rows_of_the_published_table_see_the_same_images(compare, own_suite, tmp_path, monkeypatch):
    (own_suite / "suite.yaml").write_text("name: fashion_20\n")
    monkeypatch.setattr("softcpt.compare.presets.PUBLISHED", {"coop-ca": "CoOp-CA", "coop-mt": "CoOp-MT"})
    ended = compare(
        tmp_path / "out", "--preset", "published-table", "--shots", "1", "--seeds", "1", suites=[own_suite]
    )
    assert ended.code == 0, ended.err
    cells = [json.loads(path.read_text())["identity"] for path in (tmp_path / "out" / "cells").iterdir()]
    seen = {(cell["settings"]["draw"], cell["settings"]["views"]) for cell in cells}
    assert seen == {("product", 1)}  # as given: the recipe's own are 16 others
    assert {cell["settings"]["recipe"] for cell in cells} == {"paper", "published"}


def test_presets_have_rows_that_can_be_run():
    for row in (*ablation_rows(), *control_rows(), *published_rows(), *rate_rows()):
        assert {key for key, _ in row.settings} <= set(keys_of(get_method(row.method)))
    for row in control_rows():
        resolve({"method": row.method, "shots": "4", **dict(row.settings)})
    controls = [row.label for row in control_rows()]
    assert len(set(controls)) == len(set(control_rows())) == len(controls)
    rates = rate_rows()
    assert len(set(rates)) == len({row.label for row in rates}) == len(rates)
    trained = [method for method in list_methods() if method.trains and "lr_factor" in keys_of(method)]
    assert {"cocoop", "plot", "softcpt-dual", "kgcoop"} < {method.key for method in trained}
    for method in trained:
        own = [dict(row.settings) for row in rates if row.method == method.key]
        assert [keys.get("lr_factor") for keys in own][:5] == [None, "3", "10", "30", "100"]
        assert ("init_scale" in keys_of(method)) == ("init_scale" in own[-1])
        for keys in own:
            resolve({"method": method.key, "shots": "4", **keys})
    labels = [row.label for row in ablation_rows()]
    assert len(set(labels)) == len(labels)
    assert labels == [
        "SoftCPT-NATA", "context of 4", "context of 8", "name in the middle", "name in front", "task names",
        "random words for task texts", "learned task features", "task context of 8",
        "low rank, 1", "low rank, 2", "low rank, 8",
        "one hidden layer", "CATA, lin", "CATA, linmean", "CATA, lincls", "each task alone",
        "2 tasks together", "4 tasks together",
    ]  # fmt: skip


def test_controls_hold_what_a_gain_of_our_own_methods_could_come_from():
    rows = {row_words(row): row.name for row in control_rows()}
    wanted = {
        "coop-ca-joint:optimizer=adam", "coop-cs-joint:optimizer=adam", "coop-mt:optimizer=adam",
        "softcpt-nata:lr=0.00003:optimizer=adam", "softcpt-rho", "softcpt-rho:share=0", "softcpt-rho:share=1",
        "softcpt-plus", "logistic:tune=task", "softcpt-span", "softcpt-span:span=own",
    }  # fmt: skip
    assert wanted <= set(rows)
    assert all(rows[words] for words in wanted)


@pytest.mark.parametrize("method", ["cocoop", "kgcoop"])
def test_a_start_without_words_is_a_row_beside_ten_times_that_start(method):
    own = [row_words(row) for row in rate_rows() if row.method == method]
    assert own[-2:] == [f"{method}:init_words=", f"{method}:init_scale=10:init_words="]


def test_published_suites_are_found_however_they_are_spelt():
    assert published.published_suite("general-10") == "General-10"
    assert published.published_suite("RS 8") == "RS-8"
    assert published.published_suite("aerial") is None


def test_a_request_without_methods_is_refused():
    with pytest.raises(ConfigError, match="names no method"):
        Request([], [1], [1]).check()


def test_ctrl_c_says_that_it_can_go_on(compare, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("softcpt.compare.executor.do", interrupt)
    ended = compare(tmp_path / "out", "--methods", "coop-mt")
    assert ended.code == 130
    assert "the same command goes on from there" in ended.err
    assert not (tmp_path / "out").exists()  # nothing had been begun


@pytest.mark.parametrize("gpus", ["-3", "0", "2"])
def test_a_share_of_a_gpu_is_a_share(compare, tmp_path, gpus):
    ended = compare(tmp_path / "out", "--gpus", gpus)
    assert ended.code == 2
    assert "is no share of a GPU" in ended.err


def test_differences_are_given_to_each_reference_named(compare, tmp_path):
    rows = ("--methods", "zero-shot,coop-ca,coop-mt,coop-mt:context_length=4", "--shots", "1", "--seeds", "1")

    def differences(*more):
        ended = compare(tmp_path / "out", *rows, *more)
        assert ended.code == 0, ended.err
        content = json.loads((tmp_path / "out" / "results.json").read_text())
        pairs = [(d["row"], d["reference"]) for d in content["differences"]]
        return ended.out, content, pairs

    four = "CoOp-MT, context_length=4"
    said, content, pairs = differences()
    assert content["references"] == [content["reference"]] == ["CoOp-CA"]
    assert "## Differences to CoOp-CA\n" in said
    assert pairs == [("Zero-shot CLIP", "CoOp-CA"), ("CoOp-MT", "CoOp-CA"), (four, "CoOp-CA")]

    said, content, pairs = differences("--reference", f"{four},zero-shot")
    assert content["references"] == [four, "Zero-shot CLIP"]
    assert f"## Differences to {four} and Zero-shot CLIP\n" in said
    assert f", to {four}**" in said
    to_four = [(label, four) for label in ("Zero-shot CLIP", "CoOp-CA", "CoOp-MT")]
    assert pairs == [*to_four, ("CoOp-CA", "Zero-shot CLIP"), ("CoOp-MT", "Zero-shot CLIP")]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Points more or less than {four}" in page
    assert "Points more or less than Zero-shot CLIP" in page
    assert "Points more or less than CoOp-CA" not in page

    assert differences("--reference", "coop-mt:context_length=4")[1]["references"] == [four]


def test_all_references_that_are_no_rows_are_told(compare, tmp_path):
    ended = compare(
        tmp_path / "out", "--methods", "coop-ca,coop-mt", "--reference", "coop-xx,coop-mt,zero-shot"
    )
    assert ended.code == 2
    assert "'coop-xx' is no row of this comparison" in ended.err
    assert "'zero-shot' is no row of this comparison" in ended.err
    assert "'coop-mt' is no row" not in ended.err
    assert "CoOp-CA; CoOp-MT" in ended.err
    with pytest.raises(ConfigError, match="CoOp-CA is no row of this comparison"):
        Request([Row("coop-mt")], [1], [1], references=[Row("coop-ca")]).check()


def test_two_rows_of_one_label_are_refused():
    rows = [Row("coop-mt", name="ours"), Row("coop-ca", name="ours"), Row("coop-cs")]
    with pytest.raises(ConfigError, match="ours: 2 rows have this label") as refused:
        Request(rows, [1], [1]).check()
    assert len(refused.value.faults) == 1
    Request([rows[0], rows[2]], [1], [1]).check()


def test_no_methods_is_not_the_usual_ones(compare, tmp_path):
    assert compare(tmp_path / "out", "--methods", "").code == 2


def test_the_script_of_the_page_runs_and_without_its_guard_says_what_is_missing(world, tmp_path):
    page = (ROOT / "docs" / "how-to" / "compare.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[-1]
    for old, new in {
        '"ViT-B-16/openai"': repr(str(world.backbone)),
        '"my_suite"': repr(str(world.suite)),
        "shots=[1, 4], seeds=[1, 2, 3]": "[1], [1], {'epochs': '1', 'views': '1'}, jobs=2, cache='cache'",
    }.items():
        assert old in code
        code = code.replace(old, new)
    before, _, guarded = re.split(r"(^if __name__.*\n)", code, flags=re.MULTILINE)
    bare = before + textwrap.dedent(guarded)
    ended = []
    for name, text in (("bare.py", bare), ("guarded.py", code)):
        (tmp_path / name).write_text(text)
        run = subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        ended.append((run.returncode, run.stderr))
    assert ended[0][0] != 0
    assert 'if __name__ == "__main__":' in ended[0][1]
    assert ended[0][1].count("Traceback") == 1  # the caller's; none of the processes'
    assert ended[1][0] == 0, ended[1][1]
    assert (tmp_path / "study" / "results.json").exists()


@pytest.mark.parametrize("n_images", [6, 8])
def test_suites_with_a_handful_of_test_images_get_a_table_too(compare, tmp_path, n_images):
    suite = draw_suite(tmp_path / "few", tasks=["shape", "colour"], images_per_class=n_images, size_px=32)
    ended = compare(
        tmp_path / "out", "--methods", "coop-ca,softcpt-nata", "--shots", "1", "--seeds", "1,2,3",
        suites=[suite],
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for told in (*found["differences"], *found["sharing"]):
        assert told["low"] < told["high"]
