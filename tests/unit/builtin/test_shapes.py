"""Signed distances of shapes and letters, beside what is known of them."""

import numpy as np
import pytest

from softcpt.builtin.canvas import blurred, covered, points, smooth_noise
from softcpt.builtin.letters import FONTS, letter_distance, sample_font
from softcpt.builtin.scene import ATTRIBUTES
from softcpt.builtin.shapes import SHAPES, polygon

LINE = np.linspace(-1.6, 1.6, 161)
X, Y = np.meshgrid(LINE, LINE)


def test_distance_to_a_rectangle_is_the_textbook_formula():
    corners = [(-0.8, -0.5), (0.8, -0.5), (0.8, 0.5), (-0.8, 0.5)]
    aside, above = np.abs(X) - 0.8, np.abs(Y) - 0.5
    expected = np.hypot(np.maximum(aside, 0), np.maximum(above, 0)) + np.minimum(np.maximum(aside, above), 0)
    for turned in (corners, corners[::-1]):
        np.testing.assert_allclose(polygon(turned, X, Y), expected, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_mirror_symmetric_fills_its_circle_and_changes_no_faster_than_distance(shape):
    distance = SHAPES[shape](X, Y)
    inside = distance < 0
    assert 0.2 < inside.mean() * 3.2**2 / np.pi < 1
    assert np.abs(np.stack([X[inside], Y[inside]])).max() < 1.15
    if shape != "crescent":
        np.testing.assert_allclose(distance, distance[:, ::-1], atol=1e-9)
    step = LINE[1] - LINE[0]
    assert np.abs(np.diff(distance, axis=0)).max() < 1.01 * step
    assert np.abs(np.diff(distance, axis=1)).max() < 1.01 * step


@pytest.mark.parametrize("font", FONTS)
def test_letters_of_a_font_differ_from_one_another_and_have_one_height(font):
    rng = np.random.default_rng(0)
    hand = next(f for f in iter(lambda: sample_font(rng), None) if f.name == font and f.slant == 0)
    inside = {letter: letter_distance(letter, hand, X, Y) < 0 for letter in ATTRIBUTES["letter"] if letter}
    for letter, filled in inside.items():
        rows = Y[filled]
        assert -1.25 < rows.min() < -0.85, letter
        assert 0.85 < rows.max() < 1.25, letter
        for other, also in inside.items():
            # shared ink over all ink
            assert other == letter or (filled & also).sum() < 0.8 * (filled | also).sum()


def test_cover_is_the_share_of_a_pixel_inside():
    np.testing.assert_allclose(
        covered(np.array([-1.0, -0.05, 0.0, 0.025, 1.0]), 0.1), [1, 1, 0.5, 0.25, 0], atol=1e-12
    )


def test_blur_keeps_the_mean_of_what_lies_inside_and_smooth_noise_its_range():
    x, _ = points(32)
    picture = np.zeros((32, 32, 3))
    picture[12:20, 12:20] = 1.0
    soft = blurred(picture, 0.04)
    assert soft.sum() == pytest.approx(picture.sum())
    assert soft.max() < 1.0
    np.testing.assert_allclose(soft, soft[::-1, ::-1], atol=1e-12)
    noise = smooth_noise(np.random.default_rng(0), 3, 5, 32)
    assert noise.shape == x.shape
    assert 0 <= noise.min() < noise.max() <= 1
