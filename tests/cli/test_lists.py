"""``softcpt methods`` and ``softcpt backbones``."""

import json

from softcpt.methods.registry import list_methods


def test_methods_lists_every_method_and_every_key(softcpt):
    ended = softcpt("methods")
    assert ended.code == 0
    words = ended.out.split()
    for method in list_methods():
        assert method.key in words
        assert words.count("class_sampling") == 1
        assert set(method.config.model_fields) <= set(words)


def test_methods_as_json_give_defaults_and_meanings(softcpt):
    value = {entry["method"]: entry for entry in json.loads(softcpt("methods", "--json").out)}
    assert list(value) == [method.key for method in list_methods()]
    assert value["softcpt-nata"]["keys"]["context_length"]["default"] == 16
    assert value["softcpt-nata"]["keys"]["lr"]["about"]
    assert "epochs" not in value["zero-shot"]["keys"]
    assert value["zero-shot"]["trains"] is False


def test_backbones_match_a_pattern(softcpt):
    ended = softcpt("backbones", "RN50/*")
    assert "RN50/openai" in ended.out.splitlines()
    assert all(line.startswith("RN50/") for line in ended.out.splitlines())


def test_a_pattern_without_a_match_says_what_else_a_backbone_can_be(softcpt):
    ended = softcpt("backbones", "nothing-like-this")
    assert ended.code == 2
    assert "hf-hub:" in ended.err
