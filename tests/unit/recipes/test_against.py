"""The difference between two backbones, and what evaluation says of each."""

import pytest

from recipes.pretrain_mini.against import differences
from recipes.pretrain_mini.evaluate import evaluate
from softcpt.clip.backbone import load_backbone
from softcpt.clip.toy import write_toy_backbone
from softcpt.data.drawn import draw_suite
from softcpt.data.suite import load_suite


def test_differences_are_those_of_the_scores_with_an_interval_around_them(tmp_path):
    draw_suite(tmp_path / "suite", tasks=["shape", "colour"], images_per_class=12, size_px=32)
    suite = load_suite(tmp_path / "suite")
    new, old = (load_backbone(write_toy_backbone(tmp_path / f"toy{n}", seed=n)) for n in (0, 1))
    seeds = [1, 2]
    found = differences(new, old, [suite], part="test", seeds=seeds, shots=4)
    for which, backbone in enumerate((new, old)):
        scores = evaluate(backbone, [suite], part="test", seeds=seeds)[suite.name]
        for name in ("zero-shot", "linear probe 4"):
            assert found[suite.name][name][which] == pytest.approx(scores[name], abs=0.11)
    for one, other, gain, low, high in found[suite.name].values():
        assert gain == pytest.approx(one - other, abs=0.11)
        assert low < gain < high
    assert found["mean"] == found[suite.name]  # of one suite
    same = differences(new, new, [suite], part="test", seeds=seeds, shots=4)
    gain, low, high = same["mean"]["zero-shot"][2:]
    assert (gain, high) == (0.0, -low)
    assert 0.0 < high < 100.0  # alike on these images is no sure tie on others
