"""What is compared with what, and what is said about it."""

from dataclasses import replace

import pytest

from softcpt.compare.differences import Difference, reference_of, reference_row, shares, sharing_rows
from softcpt.compare.results import Score
from softcpt.compare.rows import parse_rows
from softcpt.compare.sentences import sharing_sentence, sharing_summary, verdict
from softcpt.compare.statistics import interval
from softcpt.compare.tables import _marks, show_difference, show_score
from softcpt.methods.registry import list_methods


def difference(value, deviation, p=None, task="leaf"):
    found = interval(value, deviation**2, float("inf"), "images and seeds", 5)
    return Difference("plants", 4, task, "SoftCPT-NATA", "CoOp-CA", found, found.p if p is None else p)


def test_a_clear_gain_is_said_to_help():
    said = sharing_sentence(difference(0.031, 0.005))
    assert said == (
        "leaf (plants, 4 shots): sharing helps. SoftCPT-NATA scores 3.1 points more than CoOp-CA "
        "(95 % interval +2.1 to +4.1)."
    )


def test_a_clear_loss_is_said_to_hurt():
    assert "sharing hurts. SoftCPT-NATA scores 2.0 points less" in sharing_sentence(difference(-0.02, 0.003))


def test_a_difference_within_the_noise_is_called_that():
    assert "no difference larger than the noise" in sharing_sentence(difference(0.004, 0.01))


def test_a_difference_that_is_one_among_many_is_a_hint():
    said = sharing_sentence(difference(0.02, 0.009, p=0.2))
    assert "a hint, no more" in said
    assert verdict(difference(0.02, 0.009, p=0.2)) == "unclear"


def test_the_summary_counts_tasks():
    found = [difference(0.03, 0.005), difference(-0.03, 0.005), difference(0.0, 0.01)]
    assert sharing_summary(found) == (
        "4 shots: sharing helps in 1 of 3 tasks, hurts in 1; no difference larger than the noise in 1."
    )


def test_rows_are_compared_with_each_task_alone_where_there_is_one():
    assert reference_row(parse_rows(["zero-shot", "softcpt-nata", "coop-ca"])).method == "coop-ca"
    assert reference_row(parse_rows(["zero-shot", "softcpt-nata"])).method == "zero-shot"
    assert reference_row(parse_rows(["softcpt-nata", "softcpt-nats"])).method == "softcpt-nata"
    assert reference_row(parse_rows(["softcpt-nata"])) is None


def test_sharing_is_asked_of_rows_tuned_alike():
    shared, alone = parse_rows(["softcpt-nata", "coop-ca"])
    assert sharing_rows([shared, alone]) == (shared, alone)
    tuned = [shared.tuned("tuned"), alone.tuned("tuned")]
    assert sharing_rows([shared, alone, *tuned]) == tuple(tuned)
    assert sharing_rows([shared, alone.tuned("tuned")]) == (None, None)
    assert sharing_rows([replace(shared, together=1), alone]) == (None, None)


@pytest.mark.parametrize("method", [method.key for method in list_methods()])
def test_methods_that_train_tasks_apart_do_not_share(method):
    apart = {"zero-shot", "coop-ca", "coop-ca-joint", "coop-cs", "coop-cs-joint"}
    [row] = parse_rows([method])
    if method in apart:
        assert not shares(row)
    if method in ("coop-mt", "softcpt-nata", "softcpt-star", "softcpt-dual"):
        assert shares(row)


def test_rows_whose_settings_take_the_sharing_away_do_not_share():
    words = [
        "softcpt-dual:kernel=diagonal",
        "softcpt-dual:kernel=diagonal-top",
        "softcpt-dual:kernel=rho:share=0",
    ]
    assert [shares(row) for row in parse_rows(words)] == [False] * 3
    assert shares(*parse_rows(["softcpt-dual:kernel=rho:share=0.2"]))
    shared, alone = parse_rows(["softcpt-dual:kernel=diagonal", "coop-ca"])
    assert sharing_rows([shared, alone]) == (None, None)


def test_best_and_second_are_marked_and_equals_share_a_place():
    scores = [Score(0.5, 0, 1), None, Score(0.7, 0, 1), Score(0.7, 0.1, 2), Score(0.6, 0, 1)]
    assert _marks(scores) == ["", "", "best", "best", "second"]


def test_scores_and_differences_are_shown_in_percent_and_points():
    assert show_score(Score(0.5184, 0.0089, 3)) == "51.8 ± 0.9"
    assert show_score(Score(0.5184, 0, 1)) == "51.8"
    assert show_score(None) == "–"  # noqa: RUF001
    assert show_difference(difference(0.031, 0.005)) == "**+3.1** (2.1 to 4.1)"


def test_tuned_rows_are_compared_with_the_reference_tuned_alike():
    reference, row = parse_rows(["coop-ca", "softcpt-nata"])
    rows = [reference, row, *(r.tuned("tuned") for r in (reference, row))]
    assert reference_of(row, reference, rows) == reference
    assert reference_of(rows[3], reference, rows) == rows[2]
    assert reference_of(rows[2], reference, rows) == reference  # what tuning brings the reference itself
    assert reference_of(rows[3], reference, [reference, row, rows[3]]) == reference
