"""What the differences say, in sentences a practitioner understands."""

from __future__ import annotations

from collections.abc import Sequence

from softcpt.compare.differences import Analysis, Difference
from softcpt.compare.results import Results
from softcpt.compare.rows import row_words
from softcpt.compare.statistics import FEWEST_SEEDS
from softcpt.compare.store import RESULTS
from softcpt.data.record import Suite

MOST_NOTES = 20
"""Of cells, in tables and pages."""

SHARING_SAID = (
    "The two may also differ in the size and number of their steps: what is left of a difference without "
    "that, the preset controls tells."
)


def size_words(suite: Suite) -> str:
    """``5 tasks, 28 classes``."""
    n_tasks, n_classes = len(suite.tasks), suite.n_classes
    return f"{n_tasks} task{'s' * (n_tasks != 1)}, {n_classes} class{'es' * (n_classes != 1)}"


def split_words(results: Results) -> str:
    """Who decides what is trained on and what is tested."""
    if all(any(record.part for record in suite.records) for suite in results.suites):
        return "as given"
    return "a new one each seed" if results.about["resplit"] else "one for all seeds"


def shots_words(shots: int | None) -> str:
    """``4 shots``; the average over all where there is no number."""
    if shots is None:
        return "average over shots"
    return f"{shots} shot" if shots == 1 else f"{shots} shots"


def tenths(points: float) -> float:
    """To a tenth; nothing less than nothing."""
    return round(points, 1) + 0.0


def verdict(difference: Difference) -> str:
    """``helps``, ``hurts`` or ``unclear``."""
    if not difference.is_clear:
        return "unclear"
    return "helps" if difference.interval.value > 0 else "hurts"


def sharing_sentence(difference: Difference) -> str:
    """Does sharing help this task?"""
    found = difference.interval
    points, low, high = 100 * found.value, 100 * found.low, 100 * found.high
    more = "more" if points >= 0 else "less"
    beside = f"{abs(points):.1f} points {more} than" if round(points, 1) else "as much as"
    who = f"{difference.row} scores {beside} {difference.reference}"
    where = f"{difference.task} ({difference.suite}, {shots_words(difference.shots)})"
    between = f"95 % interval {tenths(low):+.1f} to {tenths(high):+.1f}"
    if difference.is_clear:
        return f"{where}: sharing {verdict(difference)}. {who} ({between})."
    if found.low > 0 or found.high < 0:
        return (
            f"{where}: a hint, no more. {who} ({between}), which does not hold after correction "
            "for the number of tasks."
        )
    return f"{where}: no difference larger than the noise. {who} ({between})."


def sharing_summary(differences: Sequence[Difference]) -> str:
    """How many tasks it helps."""
    counts = [verdict(d) for d in differences]
    n = len(counts)
    level = shots_words(differences[0].shots)
    return (
        f"{level[0].upper()}{level[1:]}: sharing helps in {counts.count('helps')} of {n} tasks, "
        f"hurts in {counts.count('hurts')}; no difference larger than the noise in {counts.count('unclear')}."
    )


def unasked(analysis: Analysis) -> str:
    """Why it is not asked whether sharing helps, and which row would let it be."""
    if analysis.shared is None:
        if analysis.single:
            return "Not asked here: a suite of one task has nothing to share."
        return (
            "Not asked here: it takes a row that shares (such as softcpt-nata) beside a like one that trains "
            "each task alone (such as coop-ca)."
        )
    if analysis.alone is not None:
        return f"{analysis.shared.label} and {analysis.alone.label} have no results on the same seeds yet."
    if analysis.to_add is None:
        return (
            f"Not asked here: no row trains each task alone as {analysis.shared.label} trains all of them, "
            "and no method of ours is like it."
        )
    return (
        f"Not asked here: no row is like {analysis.shared.label} (its head, optimizer, epochs, steps a batch "
        "and contexts) "
        f"and trains each task alone. Add the row {row_words(analysis.to_add)}."
    )


def left_out_lines(analysis: Analysis) -> list[str]:
    """Which suites the question of sharing was not asked of; no line where none."""
    if not analysis.single:
        return []
    return [f"Left out, of one task, which has nothing to share with: {', '.join(analysis.single)}."]


def sharing_lines(analysis: Analysis) -> list[str]:
    """Summaries for all shots, then a sentence for each task: on the average, if there are several."""
    if analysis.shared is None or analysis.alone is None:
        return [unasked(analysis)]
    levels = list(dict.fromkeys(d.shots for d in analysis.sharing))
    of_level = {level: [d for d in analysis.sharing if d.shots == level] for level in levels}
    lines = [
        f"{analysis.shared.label} against {analysis.alone.label}, each task by its own metric. {SHARING_SAID}"
    ]
    lines += left_out_lines(analysis)
    if analysis.sharing:
        lines.append(interval_words(max(d.interval.n_seeds for d in analysis.sharing)))
    lines += [sharing_summary(found) for found in of_level.values() if found]
    if levels:
        lines += [sharing_sentence(d) for d in of_level[levels[-1]]]
    return lines


def note_lines(notes: Sequence[tuple[str, int]], n_cells: int) -> list[str]:
    """Notes of cells, each once with how many cells it holds for; of many only the first.

    Example:
        >>> note_lines([("few images", 2)], 12)
        ['few images (2 of 12 cells)']
    """
    lines = [f"{note} ({n} of {n_cells} cell{'' if n_cells == 1 else 's'})" for note, n in notes[:MOST_NOTES]]
    left = len(notes) - MOST_NOTES
    return [*lines, f"and {left} more, all of them in {RESULTS}"] if left > 0 else lines


def interval_words(n_seeds: int) -> str:
    """What intervals are over."""
    if n_seeds < FEWEST_SEEDS:
        seeds = "the seed" if n_seeds == 1 else "the seeds"
        return (
            f"Intervals are over test images alone, with {seeds} as given: fewer than {FEWEST_SEEDS} "
            "say too little about other seeds."
        )
    return "Intervals are over test images and seeds."
