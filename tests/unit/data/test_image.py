from __future__ import annotations

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, features
from torchvision.transforms import InterpolationMode

from softcpt.core.errors import ImageError
from softcpt.core.pixels import PixelSpec
from softcpt.data import image as rule
from softcpt.data.image import centre_pixels, check_image, open_image, view_pixels

SPEC = PixelSpec(32, (0.48, 0.45, 0.40), (0.26, 0.27, 0.28))


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(width=96, height=64):
    return Image.fromarray(noise(12, 8)).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# reading


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_every_known_format_is_read_in_rgb(kind):
    if kind == "AVIF" and not features.check("avif"):
        assert kind not in rule._formats()
        return
    picture = smooth()
    opened = open_image(saved(picture, kind))
    assert (opened.mode, opened.size) == ("RGB", picture.size)
    # lossy kinds and GIF's palette come near, lossless kinds are exact
    gap = np.abs(np.asarray(opened, dtype=int) - np.asarray(picture, dtype=int)).mean()
    assert gap == 0 if kind in ("PNG", "BMP", "TIFF", "PPM") else gap < 12


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX"])
def test_formats_that_are_no_photographs_are_refused(kind):
    content = saved(smooth(32, 32), kind)
    with pytest.raises(ImageError, match="not a picture of a known format"):
        open_image(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
def test_truncated_files_are_refused_by_both_doors(kind, share):
    content = saved(smooth(), kind)
    cut = content[: int(share * len(content))]
    for door in (open_image, check_image):
        with pytest.raises(ImageError):
            door(cut)


def test_truncation_shows_in_a_large_progressive_jpeg():
    content = saved(smooth(800, 600), "JPEG", progressive=True)
    check_image(content)
    with pytest.raises(ImageError, match="truncated"):
        check_image(content[:-3])


def test_png_that_lost_only_its_end_mark_is_refused():
    with pytest.raises(ImageError, match="truncated after its last row"):
        open_image(saved(smooth(), "PNG")[:-12])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.asarray(smooth(24, 16))
    # how a camera held that way stores the scene (EXIF 2.3, table of orientations)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored))
    for kind in ("PNG", "TIFF"):
        opened = open_image(saved(picture, kind, exif=exif))
        assert np.array_equal(np.asarray(opened), upright), kind


def test_grey_palette_and_binary_become_rgb():
    grey = Image.fromarray(noise(9, 5, 1))
    assert np.array_equal(np.asarray(open_image(saved(grey, "PNG")))[..., 1], np.asarray(grey))
    palette = smooth().quantize(200)
    assert np.array_equal(np.asarray(open_image(saved(palette, "PNG"))), np.asarray(palette.convert("RGB")))
    binary = grey.convert("1")
    assert set(np.unique(np.asarray(open_image(saved(binary, "PNG"))))) == {0, 255}


def test_cmyk_becomes_rgb():
    opened = open_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = opened.getpixel((8, 8))
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_byte(kind):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    opened = open_image(saved(Image.fromarray(values), kind))
    assert np.array_equal(np.asarray(opened)[..., 0], (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(mode):
    content = saved(Image.new(mode, (4, 4), 1_000_000), "TIFF")
    for door in (open_image, check_image):
        with pytest.raises(ImageError, match="without a known range"):
            door(content)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L"])
def test_transparent_pixels_are_white(mode):
    if mode in ("P", "L"):
        content = saved(Image.new(mode, (4, 4), 0), "PNG", transparency=0)
    elif mode == "PA":
        content = saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)).quantize(4), "PNG")
    else:
        content = saved(Image.new(mode, (4, 4), 0), "PNG")
    assert open_image(content).getpixel((1, 1)) == (255, 255, 255)


def test_half_transparent_pixels_are_mixed_with_white():
    content = saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert open_image(content).getpixel((1, 1)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_counts(kind):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    content = saved(first, kind, save_all=True, append_images=[second])
    red, _, blue = open_image(content).getpixel((4, 4))
    assert red > 240 > 20 > blue


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    content = saved(Image.new("RGB", (40, 30)), "PNG")
    monkeypatch.setattr(rule, "MAX_PIXELS", 40 * 30)
    open_image(content)
    monkeypatch.setattr(rule, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(ImageError, match="40 x 30 pixels, more than 1,199"):
        open_image(content)


@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side):
    content = bytearray(saved(Image.new("L", (1, 1)), "BMP"))
    content[18:26] = struct.pack("<ii", side, side + 1_500)
    with pytest.raises(ImageError):
        open_image(bytes(content))


def test_faults_name_the_file(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ImageError, match=r"x\.png: cannot be read"):
        open_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"x\.png: an empty file"):
        open_image(path)


def test_warnings_of_pil_stay_inside_and_filters_are_restored_across_threads():
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01\x03\x00"  # cut short: PIL warns
    content = saved(smooth(), "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(content)).getexif()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert (
            len(
                {
                    open_image_size
                    for open_image_size in pool.map(lambda _: open_image(content).size, range(64))
                }
            )
            == 1
        )
    assert warnings.filters == before


# pixels


@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size", [(96, 96), (100, 57), (57, 101), (33, 200), (32, 32), (301, 7), (31, 32), (1, 40)]
)
def test_centre_pixels_equal_the_evaluation_transform_of_open_clip(resize, interpolation, size):
    spec = PixelSpec(32, SPEC.mean, SPEC.std, interpolation, resize, fill=77)
    transform = image_transform_v2(
        PreprocessCfg(
            size=32,
            mean=spec.mean,
            std=spec.std,
            interpolation=interpolation,
            resize_mode=resize,
            fill_color=77,
        ),
        is_train=False,
    )
    picture = Image.fromarray(noise(*size))
    assert torch.equal(centre_pixels(picture, spec), transform(picture))


def test_a_hair_thin_picture_does_not_swell(monkeypatch):
    monkeypatch.setattr(rule, "MAX_PIXELS", 100_000)
    for size in [(1, 5000), (5000, 1)]:
        for resize in ("shortest", "longest", "squash"):
            spec = PixelSpec(32, SPEC.mean, SPEC.std, resize=resize)
            assert centre_pixels(Image.fromarray(noise(*size)), spec).shape == (3, 32, 32)


def test_a_view_is_a_function_of_digest_and_number_alone():
    picture = smooth()
    first = view_pixels(picture, SPEC, "d1", 0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert torch.equal(first, view_pixels(picture, SPEC, "d1", 0))
    assert not torch.equal(first, view_pixels(picture, SPEC, "d1", 1))
    assert not torch.equal(first, view_pixels(picture, SPEC, "d2", 0))
    assert first.dtype == torch.float32
    assert first.shape == (3, 32, 32)


def test_a_view_is_a_crop_that_is_resized_and_flipped_as_torchvision_does():
    picture = smooth()
    flips = 0
    for view in range(40):
        rng = rule.stream("view", "d", view)
        flip = rng.random() < 0.5
        left, upper, right, lower = rule._crop_box(*picture.size, rng)
        expected = F.resized_crop(
            picture, upper, left, lower - upper, right - left, [32, 32], InterpolationMode.BICUBIC
        )
        expected = F.hflip(expected) if flip else expected
        expected = F.normalize(F.to_tensor(expected), SPEC.mean, SPEC.std)
        assert torch.equal(view_pixels(picture, SPEC, "d", view), expected)
        flips += flip
    assert 8 < flips < 32


def test_crops_cover_the_allowed_areas_and_ratios():
    boxes = [rule._crop_box(400, 300, np.random.default_rng(seed)) for seed in range(500)]
    areas = [(right - left) * (lower - upper) / 120_000 for left, upper, right, lower in boxes]
    ratios = [(right - left) / (lower - upper) for left, upper, right, lower in boxes]
    assert 0.078 < min(areas) < 0.12
    assert 0.85 < max(areas) <= 1.0
    assert 0.74 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.35
    # log-uniform: as many upright as lying, apart from those that did not fit
    assert 0.4 < np.mean(np.array(ratios) > 1) < 0.65
    assert all(0 <= left < right <= 400 and 0 <= upper < lower <= 300 for left, upper, right, lower in boxes)


@pytest.mark.parametrize(
    ("size", "box"), [((400, 1), (199, 0, 200, 1)), ((10, 400), (0, 193, 10, 206)), ((1, 1), (0, 0, 1, 1))]
)
def test_a_picture_too_long_for_any_crop_gives_its_central_part(size, box):
    assert rule._crop_box(*size, np.random.default_rng(0)) == box
