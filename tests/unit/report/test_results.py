"""Means, cells and confusions, against values worked by hand."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softcpt.report.results import confusion, mistakes, spread


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_spread_is_the_mean_and_the_population_deviation(values):
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.deviation == pytest.approx(statistics.pstdev(values), abs=1e-9)


def test_a_spread_is_printed_in_percent_and_says_nothing_of_one_value():
    assert str(spread([0.40, 0.50])) == "45.0 ± 5.0"
    assert str(spread([0.5, 0.5])) == "50.0 ± 0.0"
    assert str(spread([0.386])) == "38.6"
    assert str(spread([None])) == "-"


def test_a_cell_holds_its_seeds_and_zero_shot_stands_in_every_column(results):
    suite = results.rows[0].suite
    assert [row.seed for row in results.of(suite=suite, method="coop", shots=4)] == [1, 2]
    assert len(results.of(suite=suite, method="zero-shot", shots=4)) == 1
    assert results.of(suite="another", method="coop", shots=4) == []
    assert results.shots == [1, 4]
    assert results.seeds == [1, 2]
    assert list(results.methods) == ["zero-shot", "coop", "ours"]


def test_the_best_method_has_the_highest_mean_at_those_shots_and_of_equals_the_first(results):
    suite = results.rows[0].suite
    assert results.best(suite=suite, shots=4) == "ours"
    assert results.best(suite=suite, shots=1) == "coop"


def test_confusion_counts_rows_of_true_and_columns_of_predicted_classes(results):
    [row, *_] = results.rows
    kind, state = results.tasks[row.suite]
    assert confusion(row.predictions, kind) == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    # Of four images, wet dry wet dry, the last two are taken for the other class.
    assert confusion(row.predictions, state) == [[1, 1], [1, 1]]


def test_the_commonest_mistake_is_the_largest_share_of_a_class():
    counts = [[1, 3, 0], [5, 90, 5], [0, 0, 2]]
    found = mistakes(counts, ["a", "b", "c"])
    assert [(m.label, m.predicted, m.count, m.of) for m in found] == [
        ("a", "b", 3, 4),
        ("b", "a", 5, 100),
        ("b", "c", 5, 100),
    ]


def test_json_holds_percent(results):
    found = results.rows[1].to_json()
    assert found["score"] == pytest.approx(45.0)
    assert list(found["tasks"].values()) == pytest.approx([40.0, 50.0])
    assert "predictions" not in found
