"""The documentation: complete, and true when run."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

import softcpt.app.demo as room
from softcpt.app.cli.main import COMMANDS, cli
from softcpt.app.cli.methods import _keys, _owners, _rows
from softcpt.builtin.make import SUITES
from softcpt.methods.registry import list_methods

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_page_describes_every_option_of_every_command():
    page = (DOCS / "reference" / "commands.md").read_text()
    for name in COMMANDS:
        section = re.search(rf"^## `softcpt {name}\b.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section, name
        command = cli.get_command(click.Context(cli), name)
        below = command.commands.values() if isinstance(command, click.Group) else ()
        for part in (command, *below):
            for param in part.params:
                if isinstance(param, click.Option):
                    assert param.opts[0] in section.group(), f"softcpt {name} {param.opts[0]}"


def test_keys_page_lists_every_method_and_key_with_its_default():
    page = [*(DOCS / "reference" / "keys.md").read_text().splitlines(), ""]
    known = list_methods()
    keys = {method.key: _keys(method.key) for method in known}
    methods = [f"| `{method.key}` | {method.label}: {method.summary} |" for method in known]
    rows = [
        f"| `{key}` | {default} | {about} | {_owners(owners, list(keys))} |"
        for key, default, about, owners in _rows(keys)
    ]
    starts = [page.index("| method | what it is |"), page.index("| key | default | meaning | known to |")]
    for start, wanted in zip(starts, (methods, rows), strict=True):
        assert page[start + 2 : page.index("", start)] == wanted
    assert sum(line.startswith("| `") for line in page) == len(methods) + len(rows)


def test_page_of_built_in_suites_lists_every_task_and_class():
    listed = (DOCS / "reference" / "builtin-suites.md").read_text().splitlines()
    wanted = [
        f"| `{name}` | {', '.join(task.classes.values())} |"
        for suite in SUITES.values()
        for name, task in suite.tasks.items()
    ]
    assert [line for line in listed if re.match(r"\| `\w+` \| (?!`)", line)] == wanted


def test_python_of_the_page_of_built_in_suites_runs(capsys):
    [code] = blocks(DOCS / "reference" / "builtin-suites.md", "python")
    exec(compile(code, "builtin-suites.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_pages_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        if heading:
            assert heading in anchors(other), target


def test_every_trap_names_tests_that_there_are():
    rows = re.findall(r"^\| (\d+) \|(.*)$", (DOCS / "reference" / "traps.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    for number, row in rows:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row.split("|")[-2])
        assert named, number
        for file, test in named:
            code = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^def {test}\(", code, re.MULTILINE), f"{file}::{test}"


def test_tutorial_works_as_it_stands(softcpt, tmp_path, monkeypatch, world):
    """On a smaller demo, and on the tests' backbone, which takes less time than ``mini``."""
    monkeypatch.chdir(tmp_path)
    small = {"tasks": ("shape", "weather"), "images_per_class": 10, "shots": (1,), "seeds": (1,), "epochs": 1}
    plan = replace(room.PLAN, backbone=str(world.backbone), **small)
    monkeypatch.setattr(room, "PLAN", plan)
    page = DOCS / "tutorial.md"
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("softcpt ")]
    assert {words[1] for words in commands} >= {"demo", "check", "train", "evaluate", "predict"}
    for words in commands:
        told = words[1 : words.index(">")] if ">" in words else words[1:]
        told = [plan.backbone if word == "mini" else word for word in told]
        ended = softcpt(*told)
        assert ended.code == 0, f"{words}\n{ended.err}"
    [code] = blocks(page, "python")
    exec(compile(code.replace('"mini"', repr(plan.backbone)), str(page), "exec"), {})


def _table(text, after):
    """Rows of the first Markdown table after some words: {name: its cells, without marks}."""
    lines = text[text.index(after) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    rows = {}
    for line in lines[first + 1 :]:
        if not line.startswith("|"):
            break
        cells = [re.sub(r"\*\*|</?u>", "", cell).strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    return rows


@pytest.mark.parametrize(
    ("accuracy", "differences", "reference", "columns"),
    [
        ("### Mean of both", "### Differences to CoOp-CA\n", "CoOp-CA", {0: 0, 1: 1, 2: 2, 3: 3}),
        ("### Mean of the four", "### Differences to CoOp-CA on", "CoOp-CA", {0: 0, 1: 1, 2: 2, 3: 3}),
        ("### Six methods", "Differences to CoOp-CA in points", "CoOp-CA", {i: i for i in range(6)}),
        ("### All 22 tasks", "### All 22 tasks", "SoftCPT-NATA", {3: 4}),
        ("### All 22 tasks", "### All 22 tasks", "CoOp-CA", {3: 5}),
        ("### Controls on", "### Controls on", "CoOp-CA, each task alone", {2: 3}),
        ("### The paper's ablations", "### The paper's ablations", "SoftCPT-NATA", {2: 3}),
    ],
)
def test_differences_of_the_results_are_those_of_their_tables(accuracy, differences, reference, columns):
    page = (DOCS / "results.md").read_text()
    scores, beside = _table(page, accuracy), _table(page, differences)
    assert set(scores) - set(beside) <= {reference, "CoCoOp"}
    compared = 0
    for row, cells in beside.items():
        for of_score, of_difference in columns.items():
            if row != reference and scores[row][of_score][0].isdigit() and cells[of_difference]:
                wanted = float(scores[row][of_score].split()[0]) - float(
                    scores[reference][of_score].split()[0]
                )
                assert float(cells[of_difference].split()[0]) == pytest.approx(wanted, abs=0.16), row
                compared += 1
    assert compared >= len(scores) - 1
