"""YAML 1.2: plain values, and a fault with its line for everything else."""

import pytest

from softcpt.core.yaml import YamlError, read_yaml


@pytest.fixture
def read(tmp_path):
    def from_text(text):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "file.yaml").write_bytes(content)
        return read_yaml(tmp_path / "file.yaml")

    return from_text


def test_no_is_a_word_not_false(read):
    assert read("answer: no\nnumber: 3\n") == {"answer": "no", "number": 3}


def test_json_is_yaml_too(read):
    assert read('{"a": [1, null]}') == {"a": [1, None]}


def test_a_byte_order_mark_is_passed_over(read):
    assert read(b"\xef\xbb\xbfa: 1") == {"a": 1}


def test_a_key_that_stands_twice_is_refused(read):
    with pytest.raises(YamlError, match="duplicate key"):
        read("a: 1\na: 2\n")


@pytest.mark.parametrize("text", ["a: [1", "!!python/object/apply:os.system ['true']", b"a: \xff"])
def test_what_is_no_plain_yaml_is_refused(read, text):
    with pytest.raises(YamlError):
        read(text)


def test_a_fault_names_its_line(read):
    with pytest.raises(YamlError, match="line 3"):
        read("a: 1\nb: 2\nb: 3\n")
