"""The comparison as one HTML page, and its figures as files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcpt.compare.differences import Analysis, Difference
from softcpt.compare.grid import ALL_SUITES
from softcpt.compare.learning import CHOSEN_SAID, RATES_SAID, chosen_rows, itself_sentence, rate_rows
from softcpt.compare.published import beside, meaning, published_suite
from softcpt.compare.results import EQUAL, Results, Score
from softcpt.compare.rows import Row, row_words
from softcpt.compare.sentences import (
    SHARING_SAID,
    interval_words,
    left_out_lines,
    note_lines,
    sharing_sentence,
    sharing_summary,
    shots_words,
    size_words,
    split_words,
    unasked,
    verdict,
)
from softcpt.compare.store import FIGURES, REPORT
from softcpt.compare.tables import (
    HARM_SAID,
    NONE,
    differences_title,
    harm_cells,
    harm_rows,
    show_part,
    show_plain_difference,
    show_score,
)
from softcpt.core.files import write_whole
from softcpt.report.blocks import Block, Columns, Commands, Details, Facts, Figure, Page, Section, Table, Text
from softcpt.report.comparison_figures import Point, cost_figure, gains_figure, standalone
from softcpt.report.figures import Line, accuracy_figure
from softcpt.report.page import write_page
from softcpt.report.results import Spread

MOST = 8
"""Methods in a figure: no more can be told apart by colour and mark."""


@dataclass(frozen=True)
class Drawn:
    """A figure with the name of its file."""

    name: str
    figure: Figure


def write_report(folder: Path, results: Results, analysis: Analysis, more: Sequence[Section] = ()) -> None:
    """``report.html`` and ``figures/*.svg``.

    Args:
        folder: of the comparison.
        results: what was found.
        analysis: what it means.
        more: sections at the end.
    """
    rows = shown_rows(results, analysis)
    slugs = _slugs([suite.name for suite in results.suites])
    drawn = {
        suite.name: _figures(results, rows, suite.name, n, slugs[n]) for n, suite in enumerate(results.suites)
    }
    sections = [_reading(results, analysis), _sharing(results, analysis)]
    sections += [_suite_section(results, name, figures) for name, figures in drawn.items()]
    if len(results.suites) > 1:
        sections.append(Section("Mean over suites", [_scores_table(results, None)]))
    if analysis.differences:
        sections.append(_difference_section(results, analysis))
    learned = [
        Table(caption=title, columns=["Method", *map(shots_words, results.shots)], rows=list(rows), note=said)
        for title, said, rows in (
            (f"Chosen on val, {_where(results)}", CHOSEN_SAID, chosen_rows(results)),
            (f"Effective rates, {_where(results)}", RATES_SAID, rate_rows(results)),
        )
        if rows
    ]
    if learned:
        sections.append(Section("What was learned with", learned))
    if harm_rows(results):
        sections.append(_harm_section(results))
    sections += more
    if said := note_lines(results.cell_notes(), len(results.found)):
        sections.append(Section("Notes of the cells", [Text(said)]))
    if results.failed:
        sections.append(
            Section("Failed", [Text([f"{label}: {why}" for label, why in results.failed.items()])])
        )
    names = ", ".join(drawn)
    page = Page(f"Methods compared on {names}", _lead(results, analysis), sections)
    write_page(page, folder / REPORT)
    (folder / FIGURES).mkdir(exist_ok=True)
    for figures in drawn.values():
        for one in figures:
            write_whole(folder / FIGURES / f"{one.name}.svg", standalone(one.figure.svg))


def sections_beside(results: Results) -> list[Section]:
    """Our table beside the published one, for suites of published names."""
    sections = []
    for suite in results.suites:
        if published_suite(suite.name) is not None:
            heads, rows = beside(results, suite.name)
            caption = f"Accuracy in percent on {suite.name}, ours / published"
            table = Table(caption=caption, columns=heads, rows=rows, note=meaning())
            sections.append(Section(f"{suite.name} beside the published table", [table]))
    return sections


def shown_rows(results: Results, analysis: Analysis) -> list[Row]:
    """The rows that figures show: all, or of many those that are asked about, then the highest on average."""
    rows = [row for row in results.rows if results.mean_score(row, results.shots[-1]) is not None]
    if len(rows) <= MOST:
        return rows

    def height(row: Row) -> float:
        score = results.mean_score(row, None) or results.mean_score(row, results.shots[-1])
        return score.mean if score else 0.0

    best = sorted(rows, key=height, reverse=True)
    asked = [*analysis.references, analysis.shared, analysis.alone]
    plain = [row for row in rows if not results.learns(row)]
    told = [row for row in rows if row in asked]
    keep = list(dict.fromkeys([*plain[:1], best[0], *told, *best]))[:MOST]
    return [row for row in rows if row in keep]


def _lead(results: Results, analysis: Analysis) -> str:
    level = None if len(results.shots) > 1 else results.shots[0]
    scores = [(row, results.mean_score(row, level)) for row in results.rows]
    # Other seeds are other images: what lacks some is above nothing.
    there = [
        (row, score) for row, score in scores if score is not None and score.n_seeds == len(results.seeds)
    ]
    if not there:
        return "Not all cells are there yet."
    row, score = max(there, key=lambda pair: pair[1].mean)
    at = "on average over shots" if level is None else f"at {shots_words(level)}"
    equal = sum(other.mean > score.mean - EQUAL for _, other in there) - 1
    who = f"{row.label} and {equal} more score" if equal else f"{row.label} scores"
    said = f"{who} highest {at}: {show_score(score)} %."
    for reference in analysis.references:
        against = analysis.against(reference)
        clear = [d for d in against if d.is_clear]
        said += (
            f" Of {len(against)} differences to {reference.label}, {len(clear)} are larger than the noise"
            f" ({sum(d.interval.value > 0 for d in clear)} gains,"
            f" {sum(d.interval.value < 0 for d in clear)} losses)."
        )
    if results.about["quick"]:
        said += " This is a quick look, with short trainings: not for conclusions."
    return said


def _reading(results: Results, analysis: Analysis) -> Section:
    backbone = results.about["backbone"]
    pairs = [
        ("Backbone", str(backbone["description"])),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Split", split_words(results)),
        ("Tuning", "on val, at most 12 trainings a cell" if results.about["tuned"] else "no rates"),
        ("Computed on", f"{results.about['device']}, {results.about['threads']} thread(s) a run"),
    ]
    if results.settings:
        pairs.append(("Settings", " ".join(f"{key}={value}" for key, value in results.settings.items())))
    if trained := results.about["trained"]:
        said_of = "Of methods trained step by step"
        pairs.append((said_of, " ".join(f"{key}={value}" for key, value in trained.items())))
    said = [
        "Accuracy in percent on test images by each task's own metric, mean over tasks; mean ± population "
        "deviation over seeds, no confidence interval. Every method sees the same images under "
        "the same seed; test images are read once for each number."
    ]
    if analysis.differences:
        said.append(interval_words(max(d.interval.n_seeds for d in analysis.differences)))
    blocks: list[Block] = [
        Facts(pairs),
        Text([*said, *filter(None, [itself_sentence(results)]), *results.notes]),
    ]
    if lines := command_lines(results):
        blocks += [Text(["All tables and figures are of one command:"]), Commands(lines)]
    return Section("How to read this", blocks)


def command_lines(results: Results) -> list[str]:
    """The command that makes this table; none where a table in Python had rows that no command can name."""
    about = results.about
    rows = [row for row in results.rows if row.tuning == "published"]
    if about["preset"]:
        methods = ["--preset", str(about["preset"])]
    elif any(row.name or row.together is not None for row in rows):
        return []
    else:
        methods = ["--methods", ",".join(map(row_words, rows))]
    references = [row.label if row.together is not None else row_words(row) for row in results.references]
    given = [
        *(["--reference", ",".join(references)] if references else []),
        *(["--tune"] if about["tuned"] else []),
        *([] if about["resplit"] else ["--no-resplit"]),
        *(["--quick"] if about["quick"] else []),
        *(["--skip-bad-images"] if about["skip_bad_images"] else []),
        *(["--device", str(about["device"])] if about["device"] != "cpu" else []),
        *(["--threads", str(about["threads"])] if about["threads"] != 1 else []),
        *(f"{key}={value}" for key, value in results.settings.items()),
    ]
    parts = [
        ["softcpt", "compare", *(str(suite.source) for suite in results.suites)],
        ["--backbone", str(about["backbone"]["name"]), "--output", "DIR"],
        methods,
        ["--shots", ",".join(map(str, results.shots)), "--seeds", ",".join(map(str, results.seeds)), *given],
    ]
    return " \\\n  ".join(map(shlex.join, parts)).split("\n")


def _sharing(results: Results, analysis: Analysis) -> Section:
    title = "Does sharing help me?"
    if analysis.shared is None or analysis.alone is None or not analysis.sharing:
        return Section(title, [Text([unasked(analysis)])])
    levels = list(dict.fromkeys(d.shots for d in analysis.sharing))
    of_level = {level: [d for d in analysis.sharing if d.shots == level] for level in levels}
    last = of_level[levels[-1]]
    many = len(results.suites) > 1
    table = Table(
        caption=f"Each task of {_where(results)}: {analysis.shared.label} against {analysis.alone.label}, "
        f"{shots_words(levels[-1])}",
        columns=["Task", *(["Suite"] if many else []), "Points (95 % interval)", "Sharing"],
        rows=[
            (str(d.task), *([d.suite] if many else []), show_plain_difference(d), verdict(d)) for d in last
        ],
        note="helps, hurts: larger than the noise, corrected for the number of tasks (Holm).",
        strong=[i for i, d in enumerate(last) if d.is_clear],
    )
    blocks: list[Block] = [
        Text(
            [
                *(sharing_summary(found) for found in of_level.values()),
                *left_out_lines(analysis),
                f"{SHARING_SAID} {interval_words(max(d.interval.n_seeds for d in analysis.sharing))}",
            ]
        ),
        table,
        Details("Task by task, in sentences", [Text([sharing_sentence(d) for d in last])]),
    ]
    return Section(title, blocks)


def _suite_section(results: Results, name: str, figures: Sequence[Drawn]) -> Section:
    suite = next(suite for suite in results.suites if suite.name == name)
    blocks: list[Block] = [_scores_table(results, name), Columns([drawn.figure for drawn in figures])]
    return Section(f"{name}: {size_words(suite)}", blocks)


def _scores_table(results: Results, name: str | None) -> Table:
    levels: list[int | None] = [*results.shots, *([None] if len(results.shots) > 1 else [])]
    found = {
        (row.label, level): results.mean_score(row, level)
        if name is None
        else results.score(name, row, level)
        for row in results.rows
        for level in levels
    }
    rows, best, n_seeds = [], -1.0, len(results.seeds)
    strong: list[int] = []
    for i, row in enumerate(results.rows):
        last = found[row.label, levels[-1]]
        if last is not None and last.n_seeds == n_seeds and last.mean >= best:
            strong = [i] if last.mean > best else [*strong, i]
            best = last.mean
        sizes = []
        if name is not None:
            count, seconds = results.n_learned(name, row), results.train_s(name, row)
            sizes = [
                f"{count:,}" if count else NONE,
                f"{seconds:.1f}" if seconds is not None and results.learns(row) else NONE,
            ]
        rows.append((row.label, *sizes, *(show_part(found[row.label, level], n_seeds) for level in levels)))
    heads = [shots_words(level) if level is not None else "Average" for level in levels]
    return Table(
        caption="Accuracy in percent on test images, "
        + (f"mean over {len(results.suites)} suites" if name is None else f"{name}, mean over tasks"),
        columns=["Method", *(["Numbers learned", "Seconds"] if name is not None else []), *heads],
        rows=rows,
        note="Bold: the highest in the last column. Seconds: one training, mean, with others beside it.",
        strong=strong,
    )


def _where(results: Results) -> str:
    n = len(results.suites)
    return results.suites[0].name if n == 1 else f"{n} suites"


def _harm_section(results: Results) -> Section:
    table = Table(
        caption=f"Tasks that score below zero-shot, {_where(results)}",
        columns=["Method", *map(shots_words, results.shots)],
        rows=[(row.label, *harm_cells(results, row)) for row in harm_rows(results)],
        note=HARM_SAID,
    )
    return Section("What is worse than before", [table])


def _difference_section(results: Results, analysis: Analysis) -> Section:
    levels: list[int | None] = [*results.shots, *([None] if len(results.shots) > 1 else [])]
    tables: list[Block] = []
    for reference in analysis.references:
        against = analysis.against(reference)
        for name in dict.fromkeys(d.suite for d in against):
            rows = []
            for row in results.rows:
                own = {d.shots: d for d in against if d.row == row.label and d.suite == name}
                if own:
                    cells = (_starred(own[s]) if s in own else NONE for s in levels)
                    rows.append((row.label, *cells))
            tables.append(
                Table(
                    caption=f"Points more or less than {reference.label}, "
                    + (f"mean over {len(results.suites)} suites" if name == ALL_SUITES else name),
                    columns=["Method", *map(shots_words, levels)],
                    rows=rows,
                    note=f"With 95 % intervals. *: larger than the noise, after Holm's correction for "
                    f"{len(analysis.differences)} comparisons.",
                )
            )
    return Section(differences_title(analysis), tables)


def _starred(difference: Difference) -> str:
    return show_plain_difference(difference) + ("*" if difference.is_clear else "")


def _slugs(names: Sequence[str]) -> list[str]:
    """Each name as a part of file names, of which no two are equal."""
    slugs: list[str] = []
    for n, name in enumerate(names):
        slug = re.sub(r"[^\w-]+", "-", name).strip("-").lower() or f"suite-{n}"
        while slug in slugs:
            slug += f"-{n}"
        slugs.append(slug)
    return slugs


def _figures(results: Results, rows: Sequence[Row], name: str, number: int, slug: str) -> list[Drawn]:
    if not rows:
        return []
    seeds = f"over {len(results.seeds)} seeds" if len(results.seeds) > 1 else "of one seed"
    left_out = len(results.rows) - len(rows)
    aside = f" {left_out} methods are left out." if left_out else ""
    shots = results.shots[-1]
    suite = next(suite for suite in results.suites if suite.name == name)
    tasks = [task.name for task in suite.tasks]
    lines = [_line(results, name, row) for row in rows]
    trained = [row for row in rows if results.learns(row)]
    gains = {row.label: results.gains(name, row, shots) for row in trained}
    said = "; ".join(
        f"{row.label} " + ", ".join(f"{s}: {show_score(results.score(name, row, s))}" for s in results.shots)
        for row in rows
    )
    drawn = [
        Drawn(
            f"accuracy-{slug}",
            Figure(
                accuracy_figure(
                    lines, key=f"accuracy-{number}", alt=f"Accuracy in percent over shots on {name}. {said}."
                ),
                f"Accuracy over shots on {name}, mean over {len(tasks)} tasks {seeds}. Error bars: "
                f"population deviation over seeds, no confidence interval.{aside}",
            ),
        )
    ]
    if trained:
        drawn.append(
            Drawn(
                f"gains-{slug}",
                Figure(
                    gains_figure(
                        {label: [own.get(task) for task in tasks] for label, own in gains.items()},
                        tasks,
                        places={row.label: i for i, row in enumerate(rows)},
                        key=f"gains-{number}",
                        alt=f"Gain over zero-shot in points at {shots_words(shots)} on {name}. "
                        + "; ".join(_told(label, own) for label, own in gains.items()),
                    ),
                    f"Gain over zero-shot with the templates, task by task, on {name}: {shots_words(shots)}, "
                    f"mean {seeds}.{aside}",
                ),
            )
        )
    for what, stem, cost in (
        ("numbers learned", "parameters", results.n_learned),
        ("seconds of one training", "time", _training_s(results)),
    ):
        points = [
            Point(row.label, float(cost(name, row) or 0.0), score.mean)
            for row in rows
            if (score := results.score(name, row, None)) is not None
        ]
        if points:
            told = "; ".join(f"{p.label}: {p.cost:,.0f}, {100 * p.score:.1f} %" for p in points)
            figure = cost_figure(
                points, what=what, key=f"{stem}-{number}", alt=f"Accuracy against {what} on {name}. {told}."
            )
            average = "average over shots" if len(results.shots) > 1 else shots_words(shots)
            drawn.append(
                Drawn(
                    f"{stem}-{slug}", Figure(figure, f"Accuracy on {name}, {average}, against {what}.{aside}")
                )
            )
    return drawn


def _training_s(results: Results) -> Callable[[str, Row], float | None]:
    """As ``results.train_s``, with 0 where nothing is learned."""

    def seconds(name: str, row: Row) -> float | None:
        return results.train_s(name, row) if results.learns(row) else 0.0

    return seconds


def _line(results: Results, name: str, row: Row) -> Line:
    points = {s: _spread(score) for s in results.shots if (score := results.score(name, row, s)) is not None}
    level = next(iter(points.values()), None) if not results.learns(row) else None
    return Line(row.label, points, level)


def _spread(score: Score) -> Spread:
    return Spread(score.mean, score.deviation, score.n_seeds)


def _told(label: str, gains: dict[str, float]) -> str:
    return f"{label}: " + ", ".join(f"{task} {100 * gain:+.1f}" for task, gain in gains.items())
