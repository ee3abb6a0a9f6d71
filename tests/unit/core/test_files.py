"""Files: whole or not at all, told apart by their bytes, never outside their folder."""

import hashlib
import json
import os
import stat

import pytest

from softcpt.core.files import (
    digest_of_file,
    digest_of_json,
    relative_part,
    stays_inside,
    to_json,
    write_whole,
    write_whole_with,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "result.json"
    write_whole(file, "old")

    def fail(temporary):
        temporary.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole_with(file, fail)
    assert file.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    write_whole(tmp_path / "text", "é\n")
    write_whole(tmp_path / "bytes", b"\x00\r\n")
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\r\n"


def test_others_may_read_what_was_written_as_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_digest_of_a_file_is_that_of_its_bytes_and_notices_a_change(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(b"one")
    assert digest_of_file(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"another")
    assert digest_of_file(file) == hashlib.sha256(b"another").hexdigest()


def test_digest_of_json_does_not_depend_on_the_order_of_keys():
    assert digest_of_json({"a": 1, "b": [1, 2]}) == digest_of_json({"b": [1, 2], "a": 1})
    assert digest_of_json({"a": [1, 2]}) != digest_of_json({"a": [2, 1]})


def test_json_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="Out of range"):
        to_json({"score": float("nan")})
    assert json.loads(to_json({"name": "é"})) == {"name": "é"}


@pytest.mark.parametrize(
    "text", ["", ".", "/etc/passwd", "..", "a/../../b", "C:/x", "C:x", "\\\\host\\x", "a\0b"]
)
def test_paths_that_leave_their_folder_are_none(text):
    assert relative_part(text) is None


@pytest.mark.parametrize(
    ("text", "path"), [("a/b.png", "a/b.png"), ("./a.png", "a.png"), ("a\\b.png", "a/b.png")]
)
def test_paths_inside_come_out_with_slashes(text, path):
    assert str(relative_part(text)) == path


def test_a_link_out_of_the_folder_does_not_stay_inside(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    assert stays_inside(tmp_path / "inside" / "x", tmp_path / "inside")
    assert not stays_inside(tmp_path / "inside" / "link" / "x", tmp_path / "inside")
