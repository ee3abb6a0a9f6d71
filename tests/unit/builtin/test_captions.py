"""Sentences about scenes: true, varied, and silent about what is to be left out."""

import dataclasses
import re

import numpy as np
import pytest

from softcpt.builtin.captions import describe
from softcpt.builtin.scene import ATTRIBUTES, sample_scene
from softcpt.builtin.scenes import HELD_OUT_TASKS
from softcpt.core.seeds import stream

WORDS_OF_HELD_OUT = {
    "position": r"middle|centre|top|bottom|side|corner|edge",
    "orientation": r"pointing|upwards|downwards|sideways",
    "material": r"paper|wood|wooden|metal|metallic|stone|fur|furry|fluffy|glass|transparent|made",
}


def sentences(n, leave_out=(), **fixed):
    for i in range(n):
        rng = stream("captions", i)
        scene = sample_scene(rng, fixed)
        yield scene, describe(scene, rng, leave_out=leave_out)


@pytest.mark.parametrize("attribute", ["colour", "letter", "shape"])
def test_a_name_in_a_sentence_is_that_of_the_scene(attribute):
    own = 0
    for scene, said in sentences(400):
        words = set(re.findall(r"[A-Za-z]+", said))
        mine = getattr(scene, attribute)
        grounds = {scene.background_colour, "black", "white"}  # outlines are called black and white
        for value in ATTRIBUTES[attribute]:
            if value in words and not (attribute == "colour" and value in grounds):
                # "A" also begins sentences, but never in capitals here
                assert value == mine, said
                own += 1
    assert own > 15


def test_counts_are_said_in_words_and_agree_with_the_noun():
    for scene, said in sentences(300, count="three", shape="star"):
        assert scene.count == "three"
        assert not re.search(r"\b(one|two|four|five|six|star|is)\b", said), said
    for _, said in sentences(300, count="one", shape="star"):
        assert not re.search(r"\b(two|three|stars|some|are)\b", said), said


def test_held_out_attributes_are_never_mentioned():
    for _, said in sentences(1500, leave_out=HELD_OUT_TASKS):
        for attribute in HELD_OUT_TASKS:
            assert not re.search(rf"\b({WORDS_OF_HELD_OUT[attribute]})\b", said), said
    mentioned = " ".join(said for _, said in sentences(600))
    for attribute in HELD_OUT_TASKS:
        assert re.search(rf"\b({WORDS_OF_HELD_OUT[attribute]})\b", mentioned)


def test_what_cannot_be_seen_is_not_mentioned():
    for scene, said in sentences(600):
        if scene.quality in ("dark", "overexposed"):
            assert scene.colour in ("black", "white") or scene.colour not in said.split(), said


def test_sentences_vary_and_articles_are_right():
    found = [said for _, said in sentences(1000)]
    assert len(set(found)) > 850
    for said in found:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |,,|, ?$|\bNone\b", said), said
    one = sample_scene(np.random.default_rng(0), {"shape": "heart", "colour": "red"})
    assert len({describe(one, stream("one", i)) for i in range(200)}) > 60


def test_every_attribute_is_mentioned_now_and_then():
    for name in ATTRIBUTES:
        value = list(ATTRIBUTES[name])[-1]
        scene = sample_scene(stream("each", name), {name: value})
        with_it = {describe(scene, stream("with", i)) for i in range(300)}
        hidden = [field for field in dataclasses.asdict(scene) if field == name]
        without = {describe(scene, stream("with", i), leave_out=hidden) for i in range(300)}
        assert with_it - without
