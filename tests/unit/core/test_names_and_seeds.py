"""Names have one form; streams are named and independent."""

import pytest

from softcpt.core.names import normalise_name, prompt_words, task_text
from softcpt.core.seeds import seed_for_torch, stream, stream_key


def test_names_that_look_alike_are_alike():
    assert normalise_name(" cafe\u0301 ") == normalise_name("caf\u00e9")


def test_underscores_become_blanks_and_nothing_else_changes():
    assert prompt_words("Great_Spotted-Woodpecker") == "Great Spotted-Woodpecker"


@pytest.mark.parametrize(
    ("description", "which", "text"),
    [
        ("Leaves of trees.", "description", "Leaves of trees"),
        ("Leaves of trees.", "name", "leaf"),
        (None, "description", "leaf"),
        ("", "description", "leaf"),
    ],
)
def test_task_text_is_the_description_without_its_full_stop_else_the_name(description, which, text):
    assert task_text("leaf", description, which) == text


def test_a_stream_is_a_function_of_its_name():
    assert stream(1, "shots", "leaf").integers(10**9) == stream(1, "shots", "leaf").integers(10**9)


def test_the_boundaries_of_a_name_count():
    assert stream_key("a", "bc") != stream_key("ab", "c")
    assert stream_key(1, "a") != stream_key("1", "a")


def test_a_stream_is_the_same_on_every_machine():
    # Worked out once; another value would change every draw of every stored run.
    assert stream_key(1, "shots", "leaf") == 0xB2FB79E657D1CFD6455CCA70914DD0D0
    assert stream(1, "shots", "leaf").integers(0, 1000, 4).tolist() == [36, 232, 198, 576]


def test_seeds_for_torch_fit_into_63_bits():
    assert 0 <= seed_for_torch(1, "x") < 2**63
