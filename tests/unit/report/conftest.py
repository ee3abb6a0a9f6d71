"""Results made up by hand: two tasks with hostile names, three methods, two shots, two seeds."""

import pytest

from softcpt.engine.evaluate import Scored
from softcpt.report.blocks import Commands, Details, Facts, Page, Section, Text
from softcpt.report.results import Results, Row, TaskFacts
from softcpt.report.sections import (
    choose_samples,
    confusion_section,
    samples_gallery,
    scores_section,
    tasks_section,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="http://evil.example/x.png" onerror="alert(2)">',
    "{{ 7 * 7 }} $\\frac{1}{2}$ & 'rose'",
)
SUITE = "gar<b>den"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

TASKS = (
    TaskFacts("kind", HOSTILE, 6),
    TaskFacts('state"><svg onload=alert(3)>', ("wet", "dry"), 4),
)


def predictions(n_right):
    """Of ten images the first ``n_right`` are right; each of the others is taken for the next class."""
    found = []
    for task in TASKS:
        for i in range(task.n_images):
            label = i % len(task.classes)
            predicted = label if len(found) < n_right else (label + 1) % len(task.classes)
            rest = 0.4 / (len(task.classes) - 1)
            probabilities = tuple(0.6 if c == predicted else rest for c in range(len(task.classes)))
            found.append(
                Scored(f"{i}.png", task.name, task.classes[label], task.classes[predicted], probabilities)
            )
    return tuple(found)


def row(method, label, shots, seed, scores):
    names = [task.name for task in TASKS]
    return Row(
        method, label, SUITE, shots, seed, sum(scores) / 2, dict(zip(names, scores, strict=True)),
        n_learned=1024 * shots, seconds=2.0 * shots, predictions=predictions(8),
    )  # fmt: skip


@pytest.fixture
def results():
    rows = (
        row("zero-shot", "Zero-shot CLIP", 0, 1, (0.25, 0.35)),
        row("coop", "CoOp <i>", 1, 1, (0.40, 0.50)),
        row("coop", "CoOp <i>", 1, 2, (0.50, 0.60)),
        row("coop", "CoOp <i>", 4, 1, (0.60, 0.70)),
        row("coop", "CoOp <i>", 4, 2, (0.60, 0.74)),
        row("ours", "Ours", 1, 1, (0.45, 0.55)),
        row("ours", "Ours", 1, 2, (0.45, 0.55)),
        row("ours", "Ours", 4, 1, (0.70, 0.80)),
        row("ours", "Ours", 4, 2, (0.75, 0.85)),
    )
    return Results(rows, {SUITE: TASKS})


@pytest.fixture
def make_page():
    """Results -> a page of all kinds of blocks."""
    return page_of


@pytest.fixture
def page(results):
    return page_of(results)


def page_of(results):
    suite = results.rows[0].suite
    tasks = results.tasks[suite]
    best = results.of(suite=suite, method="ours", shots=4)
    chosen = choose_samples(best[0], tasks)
    return Page(
        title=f"Report of {suite}",
        lead='</p><script src="https://evil.example/a.js"></script>',
        sections=[
            Section("Run <u>", [Facts([("command", "softcpt demo --output '<x>'")]), Text(["a & b"])]),
            scores_section(results, suite),
            tasks_section(results, suite, 4),
            confusion_section(best, tasks),
            Section("Samples", [samples_gallery(chosen, tasks, lambda image: PIXEL)]),
            Section("Next", [Details("<em>", [Commands(["softcpt check my_suite", "</code><b>"])])]),
        ],
    )
