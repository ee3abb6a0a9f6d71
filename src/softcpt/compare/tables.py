"""Tables in Markdown: laid out as the paper's main table, then the differences and what they say."""

from __future__ import annotations

from collections.abc import Sequence

from softcpt.compare.differences import Analysis, Difference
from softcpt.compare.grid import ALL_SUITES
from softcpt.compare.learning import CHOSEN_SAID, RATES_SAID, chosen_rows, itself_sentence, rate_rows
from softcpt.compare.results import Results, Score
from softcpt.compare.rows import Row, row_words
from softcpt.compare.sentences import (
    interval_words,
    note_lines,
    sharing_lines,
    shots_words,
    size_words,
    split_words,
    tenths,
)

NONE = "–"  # noqa: RUF001  as the paper has it

HARM_SAID = (
    "Tasks whose mean score over seeds lies below zero-shot with the template, by any amount; of all suites."
)


def markdown(results: Results, analysis: Analysis, more: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        results: what was found.
        analysis: what it means.
        more: lines after the tables of scores.
    """
    lines = ["# Comparison", "", *_head(results)]
    for suite in results.suites:
        lines += ["", f"## {suite.name} ({size_words(suite)})", ""]
        lines += main_table(results, suite.name)
    if len(results.suites) > 1:
        lines += ["", "## Mean over suites", "", *main_table(results, None)]
    if said := itself_sentence(results):
        lines += ["", said]
    lines += more
    if analysis.differences:
        lines += ["", *_differences(results, analysis)]
    if harm_rows(results):
        lines += ["", "## Tasks below zero-shot", "", *_harm_table(results)]
    lines += [
        *_listed("Chosen on val", CHOSEN_SAID, results, chosen_rows(results)),
        *_listed("Effective rates", RATES_SAID, results, rate_rows(results)),
    ]
    lines += ["", "## Does sharing help me?", ""]
    lines += [f"- {line}" for line in sharing_lines(analysis)]
    if notes := note_lines(results.cell_notes(), len(results.found)):
        lines += ["", "## Notes of the cells", "", *(f"- {line}" for line in notes)]
    if results.failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {label}: {why}" for label, why in results.failed.items()]
    return "\n".join(lines) + "\n"


def _head(results: Results) -> list[str]:
    backbone = results.about["backbone"]
    seeds = ", ".join(map(str, results.seeds))
    said = [
        f"Accuracy on test images in percent by each task's own metric, mean over tasks; mean ± population "
        f"deviation over seeds ({seeds}). Best **bold**, second <u>underlined</u>.",
        f"Backbone: {backbone['description']}; {results.about['device']}, "
        f"{results.about['threads']} thread(s) a run. Training (s): of one run, with others beside it.",
        f"Split: {split_words(results)}.",
    ]
    if results.settings:
        given = " ".join(f"{key}={value}" for key, value in results.settings.items())
        said.append(f"For all methods that know them: `{given}`.")
    if results.about["trained"]:
        given = " ".join(f"{key}={value}" for key, value in results.about["trained"].items())
        said.append(f"For methods trained step by step, where nothing else is given: `{given}`.")
    if not results.about["tuned"]:
        said.append("No rate was tuned: settings are the methods' defaults, or as named.")
    said += [
        f"{row.label}: `{row_words(row)}`" + ("." if row.together is None else ", of the preset alone.")
        for row in results.rows
        if row.name and row.tuning == "published"
    ]
    if results.about["quick"]:
        said.append("**A quick look, with short trainings: not for conclusions.**")
    return [" ".join(said[:1]), "", *(f"- {line}" for line in [*said[1:], *results.notes])]


def table_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table; a bar in a name is no edge."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def main_table(results: Results, suite: str | None) -> list[str]:
    """Method, parameters, training time, each number of shots, average.

    Args:
        results: what was found.
        suite: its name; None for the mean over suites.
    """
    levels: list[int | None] = [*results.shots, None]
    scores = {
        (row.label, level): (
            results.mean_score(row, level) if suite is None else results.score(suite, row, level)
        )
        for row in results.rows
        for level in levels
    }
    # The average of a single number of shots would only say it again.
    shown = levels if len(results.shots) > 1 else levels[:1]
    heads = [str(level) if level is not None else "Average" for level in shown]
    sizes = ["Parameters", "Training (s)"] if suite is not None else []
    lines = [
        table_line(["Method", *sizes, *heads]),
        "|" + "|".join(["---", *["---:"] * (len(sizes) + len(heads))]) + "|",
    ]
    n_seeds = len(results.seeds)
    marks = {level: _marks([scores[row.label, level] for row in results.rows], n_seeds) for level in shown}
    for i, row in enumerate(results.rows):
        cells = [_cell(scores[row.label, level], marks[level][i], n_seeds) for level in shown]
        own = [_count(results, suite, row), _seconds(results, suite, row)] if suite is not None else []
        lines.append(table_line([row.label, *own, *cells]))
    return lines


def _marks(scores: Sequence[Score | None], n_seeds: int) -> list[str]:
    """``best``, ``second`` or nothing; equal ones share a place, and what lacks seeds has none."""
    whole = [None if score is None or score.n_seeds < n_seeds else round(score.mean, 9) for score in scores]
    ranked = sorted({mean for mean in whole if mean is not None}, reverse=True)
    names = dict(zip(ranked, ("best", "second"), strict=False))
    return ["" if mean is None else names.get(mean, "") for mean in whole]


def show_score(score: Score | None, digits: int = 1) -> str:
    """Percent: ``51.8 ± 0.9``; the mean alone of a single seed."""
    if score is None:
        return NONE
    mean = f"{100 * score.mean:.{digits}f}"
    return mean if score.n_seeds < 2 else f"{mean} ± {100 * score.deviation:.{digits}f}"


def show_part(score: Score | None, n_seeds: int) -> str:
    """A score, and of how many seeds if not of all: ``51.8 ± 0.9 (2 of 3 seeds)``."""
    if score is None or score.n_seeds == n_seeds:
        return show_score(score)
    return f"{show_score(score)} ({score.n_seeds} of {n_seeds} seeds)"


def _cell(score: Score | None, mark: str, n_seeds: int) -> str:
    text = show_part(score, n_seeds)
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(mark, text)


def _count(results: Results, suite: str, row: Row) -> str:
    count = results.n_learned(suite, row)
    return f"{count:,}" if count else NONE


def _seconds(results: Results, suite: str, row: Row) -> str:
    seconds = results.train_s(suite, row)
    return f"{seconds:.1f}" if seconds is not None and results.learns(row) else NONE


def _listed(title: str, said: str, results: Results, rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    heads = table_line(["Method", *map(shots_words, results.shots)])
    lines = ["", f"## {title}", "", said, "", heads, "|---" * (len(results.shots) + 1) + "|"]
    return [*lines, *map(table_line, rows)]


def _harm_table(results: Results) -> list[str]:
    lines = [
        HARM_SAID,
        "",
        table_line(["Method", *map(shots_words, results.shots)]),
        "|---|" + "---:|" * len(results.shots),
    ]
    lines += [table_line([row.label, *harm_cells(results, row)]) for row in harm_rows(results)]
    return lines


def harm_rows(results: Results) -> list[Row]:
    """Those that learn: zero-shot cannot fall below itself."""
    return [row for row in results.rows if results.learns(row)]


def harm_cells(results: Results, row: Row) -> list[str]:
    """``3 of 14`` for each number of shots."""
    harmed = [results.harmed(row, shots) for shots in results.shots]
    return [f"{below} of {n}" if n else NONE for below, n in harmed]


def differences_title(analysis: Analysis) -> str:
    """``Differences to CoOp-CA and Zero-shot CLIP``."""
    return f"Differences to {' and '.join(row.label for row in analysis.references)}"


def differences_said(analysis: Analysis) -> str:
    """How they were made; for a table's page."""
    n_seeds = max((d.interval.n_seeds for d in analysis.differences), default=0)
    many = len(analysis.references) > 1
    return (
        f"In points, on the same seeds, tasks and images, with 95 % intervals; tuned rows are compared with "
        f"the reference tuned alike, where it is there"
        f"{'; two references are compared once' if many else ''}. {interval_words(n_seeds)} "
        f"**Bold**: larger than the noise, after Holm's correction for {len(analysis.differences)} "
        "comparisons."
    )


def _differences(results: Results, analysis: Analysis) -> list[str]:
    lines = [f"## {differences_title(analysis)}", "", differences_said(analysis)]
    suites = [suite.name for suite in results.suites]
    names = [*suites, *([ALL_SUITES] if len(suites) > 1 else [])]
    levels: list[int | None] = [*results.shots, *([None] if len(results.shots) > 1 else [])]
    many = len(analysis.references) > 1
    for reference in analysis.references:
        against = analysis.against(reference)
        # Two references are compared once: the row of an earlier one is in its own table.
        told = {d.row for d in against}
        for name in names:
            lines += ["", f"**{name}, to {reference.label}**" if many else f"**{name}**", ""]
            lines += [table_line(["Method", *map(shots_words, levels)])]
            lines += ["|---|" + "---:|" * len(levels)]
            for row in results.rows:
                if row == reference or (many and row.label not in told):
                    continue
                of_row = {d.shots: d for d in against if d.row == row.label and d.suite == name}
                cells = [show_difference(of_row[level]) if level in of_row else NONE for level in levels]
                lines.append(table_line([row.label, *cells]))
    return lines


def show_difference(difference: Difference) -> str:
    """``**+3.1** (0.8 to 5.4)``: bold where it is larger than the noise."""
    number, _, rest = show_plain_difference(difference).partition(" ")
    return f"**{number}** {rest}" if difference.is_clear else f"{number} {rest}"


def show_plain_difference(difference: Difference) -> str:
    """``+3.1 (0.8 to 5.4)``."""
    found = difference.interval
    value, low, high = (tenths(100 * part) for part in (found.value, found.low, found.high))
    return f"{value:+.1f} ({low:.1f} to {high:.1f})"
