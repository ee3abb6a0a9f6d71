"""Sections of a report from results: scores, tasks, confusions, samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from softcpt.report.blocks import Block, Columns, Details, Figure, Gallery, Sample, Section, Table
from softcpt.report.figures import Line, accuracy_figure, bars_figure, confusion_figure
from softcpt.report.results import Mistake, Results, Row, TaskFacts, confusion, mistakes, spread

if TYPE_CHECKING:
    from softcpt.engine.evaluate import Scored

LIKELIEST = 3
"""Classes that a sample names."""

BARS = "Error bars, up and down"

SHOWN = 2
"""Confusion matrices that are not folded."""


def spread_meaning(results: Results, sign: str = "±") -> str:
    """What stands behind a sign of spread, ± or error bars, in a sentence."""
    n = len(results.seeds)
    if n < 2:
        return "One seed: nothing is said about how scores vary."
    return (
        f"{sign}: population deviation over {n} seeds ({', '.join(map(str, results.seeds))}), on "
        "the same test images; it is no confidence interval."
    )


def shots_words(shots: int | None) -> str:
    """``1 shot``, ``4 shots``, ``all images``; ``untrained`` for 0."""
    if shots == 0:
        return "untrained"
    if shots is None:
        return "all images"
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def scores_section(results: Results, suite: str, *, title: str = "Scores", key: str = "accuracy") -> Section:
    """Methods × shots as a table and, unless nothing was trained on a number of images, as a figure.

    Args:
        results: of any suites.
        suite: the one to show.
        title: heading.
        key: of the figure; another one for each suite of a page.
    """
    table = scores_table(results, suite)
    if not any(results.shots):
        return Section(title, [table])
    lines = []
    for method, label in results.methods.items():
        cells = {s: results.of(suite=suite, method=method, shots=s) for s in results.shots}
        level = all(row.shots == 0 for rows in cells.values() for row in rows)
        points = {s: spread(row.score for row in rows) for s, rows in cells.items() if s is not None and rows}
        lines.append(Line(label, points, next(iter(points.values())) if level and points else None))
    said = "; ".join(f"{row[0]} {', '.join(row[1 : 1 + len(results.shots)])}" for row in table.rows)
    shown = ", ".join(shots_words(s) for s in results.shots)
    figure = Figure(
        accuracy_figure(
            lines, key=key, alt=f"Accuracy in percent over training images per class, {shown}: {said}."
        ),
        f"Mean over {len(results.tasks[suite])} tasks. {spread_meaning(results, BARS)}",
    )
    return Section(title, [Columns([table, figure])])


def scores_table(results: Results, suite: str) -> Table:
    """Methods × shots: mean over tasks and seeds, with what was learned and how long it took."""
    shots = results.shots or [0]
    last, best = shots_words(shots[-1]), results.best(suite=suite, shots=shots[-1])
    rows, strong = [], []
    for i, (method, label) in enumerate(results.methods.items()):
        cells = [results.of(suite=suite, method=method, shots=s) for s in shots]
        own = [row for row in results.rows if (row.suite, row.method) == (suite, method)]
        seconds = spread(row.seconds for row in cells[-1]).mean if cells[-1] else 0.0
        rows.append(
            (
                label,
                *(str(spread(row.score for row in cell)) for cell in cells),
                f"{max((row.n_learned for row in own), default=0):,}",
                f"{seconds:.1f}" if any(row.n_learned for row in own) else "-",
            )
        )
        if method == best:
            strong.append(i)
    return Table(
        caption=f"Accuracy on test images of {suite} in percent, mean over {len(results.tasks[suite])} tasks",
        columns=["Method", *map(shots_words, shots), "Numbers learned", f"Seconds, {last}"],
        rows=rows,
        note=f"{spread_meaning(results)} Bold: the highest mean at {last}. Seconds: one training.",
        strong=strong,
    )


def tasks_section(
    results: Results, suite: str, shots: int | None, *, title: str = "Task by task", key: str = "tasks"
) -> Section:
    """Bars of each task and method at one number of shots, and the numbers behind them."""
    tasks = results.tasks[suite]
    bars = {
        label: [
            spread(row.tasks[task.name] for row in results.of(suite=suite, method=method, shots=shots))
            for task in tasks
        ]
        for method, label in results.methods.items()
    }
    table = Table(
        caption=f"Accuracy of each task in percent, {shots_words(shots)}",
        columns=["Task", "Images", *bars],
        rows=[
            (task.name, str(task.n_images), *(str(bars[label][t]) for label in bars))
            for t, task in enumerate(tasks)
        ],
        note=f"Images: those tested. {spread_meaning(results)}",
    )
    said = "; ".join(
        f"{task.name}: " + ", ".join(f"{label} {bars[label][t]}" for label in bars)
        for t, task in enumerate(tasks)
    )
    figure = Figure(
        bars_figure(
            bars, [task.name for task in tasks], key=key, alt=f"Accuracy of each task in percent. {said}."
        ),
        f"{shots_words(shots).capitalize()}. {spread_meaning(results, BARS)}",
    )
    return Section(title, [Columns([figure, table])])


def confusion_section(
    rows: Sequence[Row],
    tasks: Sequence[TaskFacts],
    *,
    title: str = "What is taken for what",
    key: str = "confusion",
) -> Section:
    """Confusion matrices: those with the commonest single mistakes in sight, the others folded.

    Args:
        rows: of one method and shots, a seed each; their predictions are counted together.
        tasks: of the suite.
        title: heading.
        key: starts those of the figures.
    """
    counts = {task.name: confusion((s for row in rows for s in row.predictions), task) for task in tasks}
    worst = {task.name: mistakes(counts[task.name], task.classes)[:1] for task in tasks}
    order = sorted(tasks, key=lambda task: -(worst[task.name][0].share if worst[task.name] else 0.0))
    over = f" over {len(rows)} seeds" if len(rows) > 1 else ""
    head = f"{rows[0].label}, {shots_words(rows[0].shots)}"
    figures = [
        _confusion(task, counts[task.name], f"{key}-{i}", f'{head}, task "{task.name}"', over)
        for i, task in enumerate(order)
    ]
    blocks: list[Block] = [Columns(figures[:SHOWN])]
    if figures[SHOWN:]:
        blocks.append(Details(f"{len(figures) - SHOWN} more tasks", [Columns(figures[SHOWN:])]))
    return Section(title, blocks)


def _confusion(task: TaskFacts, counts: Sequence[Sequence[int]], key: str, head: str, over: str) -> Figure:
    commonest = mistakes(counts, task.classes)[:3]
    said = "; ".join(map(_told, commonest)) or "none"
    return Figure(
        confusion_figure(
            counts, task.classes, key=key, alt=f"Confusion matrix, {head}. Commonest mistakes: {said}."
        ),
        f"{head}: percent of each true class (row) that was taken for each class (column){over}. "
        f"Commonest mistakes: {said}.",
    )


def _told(mistake: Mistake) -> str:
    return f'"{mistake.label}" taken for "{mistake.predicted}", {100 * mistake.share:.0f} %'


def choose_samples(row: Row, tasks: Sequence[TaskFacts], *, seed: int = 0) -> list[Scored]:
    """Of each task one right and one wrong prediction, by chance and not by looks, where there are such."""
    rng = random.Random(seed)  # noqa: S311  chooses pictures, keeps no secrets
    chosen = []
    for task in tasks:
        own = sorted((s for s in row.predictions if s.task == task.name), key=lambda scored: scored.image)
        for is_right in (True, False):
            some = [scored for scored in own if (scored.label == scored.predicted) is is_right]
            if some:
                chosen.append(rng.choice(some))
    return chosen


def samples_gallery(
    chosen: Sequence[Scored], tasks: Sequence[TaskFacts], picture: Callable[[str], str]
) -> Gallery:
    """Samples with their images.

    Args:
        chosen: what to show.
        tasks: of the suite.
        picture: an image's path in the suite -> its ``data:`` URI.
    """
    classes = {task.name: task.classes for task in tasks}
    samples = []
    for scored in chosen:
        ranked = sorted(
            zip(classes[scored.task], scored.probabilities, strict=True), key=lambda pair: -pair[1]
        )
        samples.append(
            Sample(picture(scored.image), scored.task, scored.label, scored.predicted, ranked[:LIKELIEST])
        )
    return Gallery(samples)
