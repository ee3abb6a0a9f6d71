"""What a run says of itself while it works."""

import pytest

from softcpt.app.cli.progress import clock, figures, show_progress
from softcpt.core.progress import Progress


def test_figures_are_those_that_are_known():
    event = Progress("all tasks", 5, 50, 0.69314, 0.002, 119.6, 65.2)
    assert figures(event) == "loss 0.6931  lr 0.002  120 images/s  1:05 left"
    assert figures(Progress("test images", 5, 50)) == ""


def test_no_time_is_left_at_the_end():
    assert "left" not in figures(Progress("all tasks", 50, 50, 0.5, 0.1, 10.0, 0.0))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3725, "1:02:05")]
)
def test_clock_reads_as_people_write_it(seconds, shown):
    assert clock(seconds) == shown


def test_a_log_gets_a_line_at_the_end_of_a_stage_not_one_a_step(capsys):
    with show_progress(quiet=False) as listener:
        for step in range(1, 101):
            listener(Progress("all tasks", step, 100, 1.0))
    said = capsys.readouterr()
    assert said.err == "all tasks 100/100  loss 1.0000\n"
    assert said.out == ""


def test_quiet_has_no_listener():
    with show_progress(quiet=True) as listener:
        assert listener is None
