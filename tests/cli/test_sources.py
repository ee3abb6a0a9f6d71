"""What a name on the command line stands for."""

import io

import pytest

from softcpt.app.cli.sources import Named, find_images


def find(*names, stdin=b""):
    return list(
        find_images([str(name) for name in names], suffixes={".jpg", ".png"}, stdin=io.BytesIO(stdin))
    )


def test_a_file_is_taken_as_it_is_named_whatever_its_ending(tmp_path):
    file = tmp_path / "photo.unknown"
    file.write_bytes(b"")
    assert find(file) == [Named(str(file), file)]


def test_a_folder_gives_its_images_sorted_without_hidden_ones(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a.png", "b/notes.txt", ".hidden/3.png", "b/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [named.content.relative_to(tmp_path).as_posix() for named in find(tmp_path)] == [
        "a.png",
        "b/1.JPG",
        "b/2.png",
    ]


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n",
        b"GIF89a",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"BM\x01",
        b"II*\0",
        b"MM\0*",
    ],
)
def test_bytes_that_begin_like_a_picture_are_one_image(start):
    content = start + b"rest\nwith\nlines"
    assert find("-", stdin=content) == [Named("-", content)]


def test_a_webp_whose_size_holds_a_line_end_is_one_image():
    content = b"RIFF\x0a\x01\0\0WEBPVP8 rest"
    assert find("-", stdin=content) == [Named("-", content)]


def test_lines_are_paths_and_blank_ones_are_passed_over():
    assert [named.name for named in find("-", stdin=b"a b.png\n\nc.png")] == ["a b.png", "c.png"]


def test_lines_are_read_only_as_they_are_asked_for():
    stdin = io.BytesIO(b"a long name.png\nb.png\n")
    images = find_images(["-"], suffixes=(), stdin=stdin)
    next(images)
    assert stdin.tell() == len(b"a long name.png\n")
