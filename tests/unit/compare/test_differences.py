"""What is compared with what, and what is said about it."""

from dataclasses import replace

import pytest

from softcpt.compare.differences import Analysis, Difference, _pairs, reference_of, reference_row
from softcpt.compare.results import Score
from softcpt.compare.rows import Row, parse_rows, row_words
from softcpt.compare.sentences import sharing_lines, sharing_sentence, sharing_summary, verdict
from softcpt.compare.sharing import Rows
from softcpt.compare.statistics import interval
from softcpt.compare.tables import _marks, show_difference, show_part, show_score, table_line
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


_LIKE_PLUS = "head=logistic:head_tune=task:optimizer=adam"


def pair(words, **given):
    return Rows(parse_rows(words), given).pair()


def words_of(*rows):
    return tuple(row and row_words(row) for row in rows)


def test_sharing_is_asked_of_rows_tuned_alike():
    shared, alone = parse_rows(["softcpt-nata", "coop-ca"])
    assert Rows([shared, alone]).pair() == (shared, alone)
    tuned = [shared.tuned("tuned"), alone.tuned("tuned")]
    assert Rows([shared, alone, *tuned]).pair() == tuple(tuned)
    assert Rows([shared, alone.tuned("tuned")]).pair() == (None, None)
    assert Rows([replace(shared, together=1), alone]).pair() == (None, None)
    assert Rows([replace(shared, together=2), alone]).pair() == (None, None)


def test_of_rows_alike_the_one_with_as_many_steps_is_taken():
    assert words_of(*pair(["softcpt-nata", "coop-ca", "coop-ca:joint_steps=true"])) == (
        "softcpt-nata",
        "coop-ca:joint_steps=true",
    )
    # but not before one that has more settings the same
    own = ["softcpt-rho", "softcpt-rho:share=0", "coop-ca:optimizer=adam:joint_steps=true"]
    assert words_of(*pair(own)) == ("softcpt-rho", "softcpt-rho:share=0")


@pytest.mark.parametrize("method", [method.key for method in list_methods()])
def test_methods_that_learn_a_task_from_the_others_images_share(method):
    share = {"coop-mt", "mvlpt", *(key for key in (m.key for m in list_methods()) if "softcpt" in key)}
    rows = parse_rows([method])
    assert Rows(rows).shares(rows[0]) == (method in share - {"softcpt-nata-separate"})


@pytest.mark.parametrize(
    ("words", "still"),
    [
        ("softcpt-dual:kernel=diagonal", False),
        ("softcpt-dual:kernel=diagonal-top", False),
        ("softcpt-dual:kernel=rho:share=0", False),
        ("softcpt-dual:kernel=rho:share=0.2", True),
        ("softcpt-dual:kernel=centred:share=0", True),
        ("softcpt-rho:share=0", False),
        ("softcpt-plus:share=0.0", False),
        ("softcpt-span:span=own", False),
        ("softcpt-span:span=shared", True),
        ("mvlpt:shared_epochs=0", False),
    ],
)
def test_settings_may_take_the_sharing_away(words, still):
    [row] = parse_rows([words])
    assert Rows([row]).shares(row) is still
    [coop] = parse_rows(["coop-ca"])
    assert (Rows([row, coop]).pair()[0] is None) or still


def test_what_takes_the_sharing_away_counts_wherever_it_is_given():
    [row] = parse_rows(["softcpt-span"])
    assert not Rows([row], {"span": "own"}).shares(row)


@pytest.mark.parametrize(
    "alone",
    [
        "coop-ca",  # SGD, no head
        "coop-ca:optimizer=adam",
        "coop-ca:head=logistic:head_tune=task",
        "coop-ca:head=ridge:head_tune=task:optimizer=adam",
        "coop-ca:head=logistic:optimizer=adam",  # chosen for the suite, not for each task
        f"coop-ca:{_LIKE_PLUS}:epochs=20",
        f"coop-ca:{_LIKE_PLUS}:context_length=4",
        f"coop-ca:{_LIKE_PLUS}:init_words=a photo of a",
        "logistic:tune=task",  # no prompts are trained
        "zero-shot",
    ],
)
def test_rows_that_differ_in_more_than_sharing_are_not_compared(alone):
    assert pair(["softcpt-plus", alone]) == (None, None)


@pytest.mark.parametrize("alone", ["cocoop", "kgcoop", "prograd", "plot", "tip-adapter", "cross-modal"])
def test_other_methods_are_no_measure_of_sharing(alone):
    assert pair(["softcpt-nata", alone]) == (None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["softcpt-plus", "coop-ca", f"coop-ca:{_LIKE_PLUS}"], (0, 2)),
        (["softcpt-plus", f"coop-ca:{_LIKE_PLUS}", "softcpt-plus:share=0"], (0, 2)),
        (["softcpt-span", "coop-ca", "softcpt-span:span=own"], (0, 2)),
        (["softcpt-nata", "coop-ca-joint", "coop-cs", "coop-ca"], (0, 3)),
        (["softcpt-nata", "coop-ca", "softcpt-nata-separate"], (0, 2)),
        (["coop-ca:lr=0.02", "coop-mt:lr=0.06", "coop-ca", "coop-ca:lr=0.06"], (1, 3)),
        # The row that speaks for sharing is the first that can be compared.
        (["softcpt-nata:context_length=4", "coop-ca", "coop-mt"], (2, 1)),
        (["softcpt-rho", "coop-ca", "coop-mt"], (2, 1)),
        (["coop-mt", "softcpt-nata", "coop-ca"], (1, 2)),
    ],
)  # fmt: skip
def test_the_row_most_like_it_is_what_sharing_is_compared_with(words, expected):
    rows = parse_rows(words)
    assert Rows(rows).pair() == tuple(rows[i] for i in expected)


def test_what_all_rows_are_given_is_the_same_for_all():
    assert pair(["softcpt-span", "coop-ca"])[0] is None
    assert words_of(*pair(["softcpt-span", "coop-ca"], optimizer="adam")) == ("softcpt-span", "coop-ca")


@pytest.mark.parametrize(
    ("words", "shared", "to_add"),
    [
        (["softcpt-rho", "coop-ca"], "softcpt-rho", "coop-ca:optimizer=adam"),
        (["softcpt-plus", "coop-ca"], "softcpt-plus", f"coop-ca:{_LIKE_PLUS}"),
        (["softcpt-nata:epochs=20"], "softcpt-nata:epochs=20", "coop-ca:epochs=20"),
        (["coop-mt:init_words=a photo"], "coop-mt:init_words=a photo", "coop-ca:init_words=a photo"),
        (["mvlpt"], "mvlpt", "coop-ca:keep=best:position=middle"),
        (["coop-ca", "softcpt-rho:share=0"], None, None),
    ],
)  # fmt: skip
def test_the_row_that_is_lacking_is_named_and_would_do(words, shared, to_add):
    rows = parse_rows(words)
    assert Rows(rows).pair() == (None, None)
    found = Rows(rows).to_add()
    assert words_of(*found) == (shared, to_add)
    if to_add:
        assert Rows([*rows, *parse_rows([to_add])]).pair() == found


def test_every_method_that_shares_can_be_asked():
    for method in list_methods():
        [row] = parse_rows([method.key])
        rows = Rows([row])
        if rows.shares(row):
            shared, other = rows.to_add()
            assert Rows([row, other]).pair() == (shared, other)


def test_a_row_that_is_lacking_is_named_in_a_sentence():
    rows = Rows(parse_rows(["softcpt-rho", "coop-ca"]))
    shared, to_add = rows.to_add()
    assert sharing_lines(Analysis([], [], shared, None, [], to_add)) == [
        "Not asked here: no row is like SoftCPT-rho (its head, optimizer, epochs, steps a batch "
        "and contexts) and trains each task alone. Add the row coop-ca:optimizer=adam."
    ]
    assert "takes a row that shares" in sharing_lines(Analysis([], [], None, None, []))[0]
    assert "no method of ours is like it" in sharing_lines(Analysis([], [], shared, None, []))[0]


def test_tuned_rows_are_alike_where_the_same_was_tried():
    rows = parse_rows(
        ["softcpt-nata:optimizer=sgd/adam", "coop-ca:optimizer=sgd/adam", "coop-ca:optimizer=sgd"]
    )
    tuned = [row.tuned("tuned") for row in rows]
    assert Rows(tuned[:2]).pair() == tuple(tuned[:2])
    assert Rows([tuned[0], tuned[2]]).pair() == (None, None)


def test_a_bar_in_a_name_is_no_edge_of_a_table():
    assert table_line(["rate |z|^2", "1.0"]) == r"| rate \|z\|^2 | 1.0 |"


def test_best_and_second_are_marked_and_equals_share_a_place():
    scores = [Score(0.5, 0, 2), None, Score(0.7, 0, 2), Score(0.7, 0.1, 2), Score(0.6, 0, 2)]
    assert _marks(scores, 2) == ["", "", "best", "best", "second"]


def test_words_of_a_row_are_what_a_command_takes():
    row = Row("softcpt-nata", (("epochs", "3"),), name="each task alone", together=1)
    assert row_words(row) == "softcpt-nata:epochs=3"
    assert parse_rows([row_words(row)])


def test_what_lacks_seeds_is_said_to_and_has_no_place():
    scores = [Score(0.9, 0, 2), Score(0.5, 0, 3), Score(0.4, 0, 3)]
    assert _marks(scores, 3) == ["", "best", "second"]
    assert show_part(scores[0], 3) == "90.0 ± 0.0 (2 of 3 seeds)"
    assert show_part(scores[1], 3) == "50.0 ± 0.0"


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


def test_two_references_are_compared_once():
    a, b, c = rows = parse_rows(["coop-ca", "zero-shot", "coop-mt"])
    assert _pairs(rows, [a]) == [(b, a), (c, a)]
    assert _pairs(rows, [a, c]) == [(b, a), (c, a), (b, c)]
    tuned = a.tuned("tuned"), c.tuned("tuned")
    assert _pairs([a, c, *tuned], [a, c]) == [
        (c, a),
        (tuned[0], a),
        (tuned[1], tuned[0]),
        (tuned[1], c),
    ]


def test_a_suite_of_one_task_has_nothing_to_share():
    lines = sharing_lines(Analysis([], [], None, None, [], None, ["leaf"]))
    assert lines == ["Not asked here: a suite of one task has nothing to share."]
    shared, alone = parse_rows(["coop-mt", "coop-ca"])
    lines = sharing_lines(Analysis([], [], shared, alone, [difference(0.03, 0.005)], None, ["leaf"]))
    assert "Left out, of one task, which has nothing to share with: leaf." in lines


def test_several_steps_a_batch_are_not_like_one():
    assert pair(["softcpt-nata:repeated_steps=3", "coop-ca"]) == (None, None)
    assert None not in pair(["softcpt-nata:repeated_steps=3", "coop-ca:repeated_steps=3"])


def test_nothing_is_less_than_nothing():
    assert show_difference(difference(-1e-9, 1e-9, p=0.9)) == "+0.0 (0.0 to 0.0)"
    said = sharing_sentence(difference(-1e-9, 1e-9, p=0.9))
    assert "scores as much as CoOp-CA (95 % interval +0.0 to +0.0)" in said
