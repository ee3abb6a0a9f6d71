"""What a scene says is what its picture shows, measured in the pixels."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from softcpt.builtin.draw import draw
from softcpt.builtin.scene import COLOURS, COUNTS, RADIUS, Scene, sample_scene
from softcpt.core.seeds import stream

CLEAN = Scene(
    shape="circle",
    letter="",
    colour="red",
    pattern="plain",
    size="small",
    count="one",
    arrangement="scattered",
    position="middle",
    background="plain",
    background_colour="white",
    outline="none",
    orientation="up",
    material="paper",
    weather="clear",
    quality="sharp",
)
SEEDS = range(6)


def pixels(seed, size_px=64, **changes):
    """A clean scene but for some attributes, values from 0 to 1."""
    scene = dataclasses.replace(CLEAN, **changes)
    return np.asarray(draw(scene, stream("test", seed), size_px)) / 255


def is_red(picture):
    return picture[..., 0] - picture[..., 1:].max(axis=2) > 0.25


def centre(mask):
    rows, columns = np.nonzero(mask)
    return (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", COUNTS)
def test_as_many_things_are_drawn_as_the_scene_says(count, seed):
    things, n = ndimage.label(is_red(pixels(seed, count=count)))
    assert n == COUNTS[count]
    areas = ndimage.sum_labels(np.ones_like(things), things, range(1, n + 1))
    assert areas.max() < 1.6 * areas.min()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_thing_has_its_colour(colour, seed):
    ground = "black" if colour in ("white", "yellow", "pink") else "white"
    picture = pixels(seed, colour=colour, background_colour=ground, size="large")
    # The middle may lie under a stick; most of the thing does not.
    inner = np.median(picture[24:40, 24:40].reshape(-1, 3), axis=0)
    nearest = min(COLOURS, key=lambda name: np.sum((inner - COLOURS[name]) ** 2))
    assert nearest == colour


@pytest.mark.parametrize("size", RADIUS)
def test_the_thing_has_its_size_at_every_resolution(size):
    for size_px in (48, 64, 128):
        mask = is_red(pixels(0, size_px, size=size, shape="square"))
        wide = np.sqrt(mask.sum()) / size_px
        assert wide == pytest.approx(2 * 0.78 * RADIUS[size], rel=0.25)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_thing_lies_where_the_scene_says(seed):
    found = {
        p: centre(is_red(pixels(seed, position=p))) for p in ("middle", "top", "bottom", "side", "corner")
    }
    aside = {position: (abs(x - 0.5), abs(y - 0.5)) for position, (x, y) in found.items()}
    assert max(aside["middle"]) < 0.12
    assert found["top"][1] < 0.3
    assert found["bottom"][1] > 0.7
    assert aside["side"][0] > 0.2 > aside["side"][1]
    assert min(aside["corner"]) > 0.2


@pytest.mark.parametrize("seed", SEEDS)
def test_pointed_things_point_where_the_scene_says(seed):
    def tip(orientation):
        # The tip of a drop is far from its centre of mass.
        mask = is_red(pixels(seed, shape="drop", size="small", orientation=orientation, size_px=128))
        x, y = centre(mask)
        rows, columns = np.nonzero(mask)
        along = np.stack([(columns + 0.5) / 128 - x, (rows + 0.5) / 128 - y], axis=1)
        return along[np.argmax(np.hypot(*along.T))]

    assert tip("up")[1] < -2 * abs(tip("up")[0])
    assert tip("down")[1] > 2 * abs(tip("down")[0])
    assert abs(tip("sideways")[0]) > 2 * abs(tip("sideways")[1])
    for name, sign in (("diagonally up", -1), ("diagonally down", 1)):
        x, y = tip(name)
        assert sign * y > 0
        assert 0.4 < abs(x) / abs(y) < 2.5


@pytest.mark.parametrize("seed", SEEDS)
def test_several_things_are_arranged_as_the_scene_says(seed):
    def centres(arrangement):
        things, n = ndimage.label(
            is_red(pixels(seed, 128, count="five", size="tiny", arrangement=arrangement))
        )
        assert n == 5
        return np.array(ndimage.center_of_mass(things > 0, things, range(1, n + 1))) / 128

    assert np.ptp(centres("row")[:, 0]) < 0.05
    assert np.ptp(centres("column")[:, 1]) < 0.05
    rows, columns = centres("diagonal").T
    assert abs(np.corrcoef(rows, columns)[0, 1]) > 0.98
    round_ = centres("circle")
    far = np.hypot(*(round_ - round_.mean(axis=0)).T)
    assert np.ptp(far) < 0.05 < far.min()


def test_weather_and_quality_change_a_picture_as_their_names_say():
    clear = [pixels(seed, size="large") for seed in SEEDS]

    def mean_of(measure, **changes):
        changed = [pixels(seed, size="large", **changes) for seed in SEEDS]
        return np.mean([measure(p) for p in changed]) / np.mean([measure(p) for p in clear])

    def roughness(picture):
        return np.abs(np.diff(picture, axis=0)).mean()

    assert mean_of(np.mean, quality="dark") < 0.6
    assert mean_of(np.mean, quality="overexposed") > 1.1
    assert mean_of(roughness, quality="grainy") > 2
    assert mean_of(np.std, weather="fog") < 0.7
    for weather in ("rain", "snow", "sunset"):
        assert mean_of(lambda picture: picture[..., 2].mean() + 1, weather=weather) != pytest.approx(
            1, abs=0.01
        )


@pytest.mark.parametrize("size_px", [32, 64, 100])
def test_a_picture_is_a_function_of_scene_stream_and_size(size_px):
    for i in range(20):
        rng, again = stream("same", i), stream("same", i)
        first = draw(sample_scene(rng), rng, size_px)
        assert (first.mode, first.size) == ("RGB", (size_px, size_px))
        assert first.tobytes() == draw(sample_scene(again), again, size_px).tobytes()
        assert first.tobytes() != draw(sample_scene(stream("same", i)), stream("other", i), size_px).tobytes()
