"""Image features: the same to the last bit wherever they come from, and computed once."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from softcpt.clip.toy import toy_backbone
from softcpt.core.errors import ConfigError, SuiteError
from softcpt.data.suite import load_suite
from softcpt.engine import cache_place, features
from softcpt.engine.cache_place import cache_folder, limit_bytes, open_cache, parse_size, show_size
from softcpt.engine.encoder_key import encoder_key
from softcpt.engine.evaluate import evaluate
from softcpt.engine.feature_cache import FILE, FeatureCache
from softcpt.engine.features import IMAGES_AT_ONCE, ImageFeatures, encode_alike
from softcpt.engine.train import train

QUICK = {"epochs": 2, "views": 2, "lr": 0.02, "batch_size": 8, "device": "cpu"}


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that went through an encoder, fill-ups included."""
    seen = []
    encode = features.encode_pixels

    def count(backbone, pixels, *how):
        seen.append(len(pixels))
        return encode(backbone, pixels, *how)

    monkeypatch.setattr(features, "encode_pixels", count)
    return seen


@pytest.fixture
def records(suite):
    return suite.records[:40]


def open_features(folder, backbone, precision="fp32"):
    return ImageFeatures(backbone, precision, FeatureCache(folder, 10**9))


def stored(run):
    return (run.path / "adapter.safetensors").read_bytes()


def steps(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [line.partition('"seconds"')[0] for line in lines]


# Exactness

TOWERS = {
    "toy ViT": lambda: (toy_backbone().visual, 32),
    "toy ResNet": lambda: (toy_backbone(kind="resnet").visual, 64),
    "ViT": lambda: (
        _build_vision_tower(
            64, CLIPVisionCfg(layers=2, width=192, head_width=64, patch_size=16, image_size=80)
        ),
        80,
    ),
    "wide ViT": lambda: (
        _build_vision_tower(
            64, CLIPVisionCfg(layers=1, width=768, head_width=64, patch_size=32, image_size=96)
        ),
        96,
    ),
    "ResNet": lambda: (
        _build_vision_tower(64, CLIPVisionCfg(layers=[1, 1, 1, 1], width=16, head_width=64, image_size=96)),
        96,
    ),
    "timm": lambda: (
        _build_vision_tower(
            64,
            CLIPVisionCfg(
                timm_model_name="convnext_atto",
                timm_model_pretrained=False,
                timm_pool="",
                timm_proj="linear",
                image_size=64,
            ),
        ),
        64,
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tower", TOWERS)
def test_a_feature_depends_on_its_own_picture_alone(tower, precision):
    """Not on how many others there are, which, or where it stands among them."""
    visual, size = TOWERS[tower]()
    backbone = replace(toy_backbone(), visual=visual.eval().requires_grad_(False))
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(37, 3, size, size, generator=rng)
    whole = encode_alike(backbone, pixels, precision)
    order = torch.randperm(37, generator=rng)
    assert torch.equal(encode_alike(backbone, pixels[order], precision), whole[order])
    for n in (1, 2, 15, 16, 17):
        assert torch.equal(encode_alike(backbone, pixels[-n:], precision), whole[-n:]), n
    others = 100 * torch.randn(20, 3, size, size, generator=rng)
    mixed = encode_alike(backbone, torch.cat([others, pixels[:1]]), precision)
    assert torch.equal(mixed[-1], whole[0])


@pytest.mark.parametrize(("kind", "precision"), [("vit", "fp32"), ("vit", "bf16"), ("resnet", "fp32")])
def test_a_full_cache_an_empty_one_and_none_give_the_same_run(suite, tmp_path, encoded, kind, precision):
    toy = toy_backbone(kind=kind)

    def run(name, cache):
        del encoded[:]
        settings = {**QUICK, "precision": precision, "shots": 3}
        return train(suite, toy, tmp_path / name, cache=cache, **settings)

    none, cold = run("none", False), run("cold", tmp_path / "cache")
    assert encoded
    warm = run("warm", tmp_path / "cache")
    assert not encoded
    assert stored(none) == stored(cold) == stored(warm)
    assert steps(none) == steps(cold) == steps(warm)
    assert none.result["val_score"] == warm.result["val_score"]


# Sharing


def test_methods_shots_and_seeds_share_features(suite, toy, tmp_path, encoded):
    cache = tmp_path / "cache"
    train(suite, toy, tmp_path / "all", cache=cache, shots="all", split="all", **QUICK)
    n = len(suite.records)
    assert sum(encoded) - 16 < 2 * n <= sum(encoded)
    del encoded[:]
    others = [{"method": "coop-ca"}, {"method": "softcpt-cats"}, {"shots": 3}, {"seed": 7, "shots": 5}]
    for i, other in enumerate(others):
        train(suite, toy, tmp_path / f"run{i}", cache=cache, **{"split": "all", **QUICK, **other})
    assert encoded == []
    train(
        suite,
        toy,
        tmp_path / "more views",
        cache=cache,
        split="all",
        shots=1,
        **{**QUICK, "views": 3, "epochs": 3},
    )
    assert encoded


def test_evaluations_share_features(suite, toy, tmp_path, encoded):
    runs = [
        train(suite, toy, tmp_path / method, method=method, cache=False, shots=1, **QUICK)
        for method in ("coop-mt", "coop-ca")
    ]
    without = evaluate(runs[1], backbone=toy)
    evaluate(runs[0], backbone=toy, cache=tmp_path / "cache")
    del encoded[:]
    told = []
    again = evaluate(runs[1], backbone=toy, cache=tmp_path / "cache", on_progress=told.append)
    assert encoded == []
    assert again == without
    assert told[-1].done == told[-1].total == len(again.predictions)


def test_a_feature_belongs_to_a_picture_not_to_its_file_name(own_suite, toy, tmp_path, encoded):
    """Two files change places: each is found under its new name, and nothing of the old one."""
    one, two = (own_suite / "shape/circle" / name for name in ("000.png", "001.png"))
    cache = tmp_path / "cache"

    def features_of(*paths):
        records = {record.path: record for record in load_suite(own_suite).records}
        return open_features(cache, toy).centres([records[path] for path in paths])

    before = features_of(one, two)
    assert not torch.allclose(before[0], before[1], atol=1e-4)
    del encoded[:]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert torch.equal(features_of(one, two), before.flip(0))
    assert encoded == []


@pytest.mark.parametrize("change", ["weights", "pixels", "precision", "dtype", "threads", "arithmetic"])
def test_another_encoder_finds_nothing(suite, toy, records, tmp_path, encoded, change):
    open_features(tmp_path, toy).centres(records)
    del encoded[:]
    open_features(tmp_path, toy).centres(records)
    assert encoded == []
    other, precision, threads = toy, "fp32", torch.get_num_threads()
    if change == "weights":
        other = toy_backbone(seed=5)
    elif change == "pixels":
        other = replace(toy, pixels=replace(toy.pixels, interpolation="bilinear"))
    elif change == "dtype":
        other = toy.to(dtype=torch.float64)
    elif change == "precision":
        precision = "bf16"
    try:
        if change == "threads":
            torch.set_num_threads(threads + 1)
        elif change == "arithmetic":
            torch.set_float32_matmul_precision("medium")
        open_features(tmp_path, other, precision).centres(records)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert sum(encoded) >= len(records)


def test_a_backbone_that_was_moved_is_the_same_encoder(toy):
    assert encoder_key(replace(toy, name="elsewhere"), "fp32").key == encoder_key(toy, "fp32").key


def test_a_damaged_entry_is_computed_again(toy, records, tmp_path, encoded):
    right = open_features(tmp_path, toy).centres(records)
    key = encoder_key(toy, "fp32")
    nan = np.full(toy.embed_dim, np.nan, "<f4").tobytes()
    with FeatureCache(tmp_path, 10**9) as cache:
        cache.put(key, {(records[3].digest, -1): nan})
    del encoded[:]
    assert torch.equal(open_features(tmp_path, toy).centres(records), right)
    assert len(encoded) == 1
    assert torch.equal(open_features(tmp_path, toy).centres(records), right)
    assert len(encoded) == 1


def test_what_an_encoder_could_not_compute_is_not_kept(toy, records, tmp_path, monkeypatch):
    def overflow(backbone, pixels, *how):
        found = torch.ones(len(pixels), backbone.embed_dim)
        found[0] = torch.inf
        return found

    monkeypatch.setattr(features, "encode_pixels", overflow)
    assert open_features(tmp_path, toy).centres(records[:5]).isinf().any()
    with FeatureCache(tmp_path, 10**9) as cache:
        assert cache.contents()[0].entries == 4


# Decoding


def test_a_picture_is_decoded_once_for_several_views(toy, records, monkeypatch):
    opened = []
    open_image = features.open_image
    monkeypatch.setattr(features, "open_image", lambda path: opened.append(path) or open_image(path))
    views = list(range(features.VIEWS_PER_DECODING))
    ImageFeatures(toy).views([r for v in views for r in records], [v for v in views for _ in records])
    assert sorted(opened) == sorted(record.path for record in records)


def test_decoding_never_runs_far_ahead():
    """What waits to be encoded is bounded: a suite's pixels would not fit into memory."""
    begun = []
    pool = SimpleNamespace(submit=lambda decode, job: begun.append(job))
    pieces = iter([[number] for number in range(9)])
    n_begun = [len(begun) for _ in features._ahead(pool, None, pieces)]
    assert n_begun == [3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_decoding_goes_on_during_encoding(suite, toy, monkeypatch):
    """The first encoding waits for a picture of the second piece: in vain, if none were decoded ahead."""
    later = {record.path for record in suite.records[IMAGES_AT_ONCE:]}
    seen = threading.Event()
    open_image, encode = features.open_image, features.encode_alike

    def decode(path):
        if path in later:
            seen.set()
        return open_image(path)

    def waiting(backbone, pixels, *how):
        assert seen.wait(60)
        return encode(backbone, pixels, *how)

    monkeypatch.setattr(features, "open_image", decode)
    monkeypatch.setattr(features, "encode_alike", waiting)
    assert later
    ImageFeatures(toy).centres(suite.records)


def test_every_bad_picture_is_told_once_in_one_error(own_suite, toy):
    suite = load_suite(own_suite)
    bad = [suite.records[0], suite.records[-1]]
    for record in bad:
        record.path.write_bytes(record.path.read_bytes()[:100])
    views = list(range(20))
    with pytest.raises(SuiteError) as caught:
        ImageFeatures(toy).views(
            [r for v in views for r in suite.records], [v for v in views for _ in suite.records]
        )
    assert [fault.where for fault in caught.value.faults] == [record.relative for record in bad]


# Where it is


def test_the_environment_names_the_folder_or_turns_it_off(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTCPT_CACHE", str(tmp_path / "named"))
    assert cache_folder() == cache_folder(True) == tmp_path / "named"
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder(False) is None
    for off in ("off", "OFF", " off "):
        monkeypatch.setenv("SOFTCPT_CACHE", off)
        assert cache_folder() is None
        with open_cache() as cache:
            assert cache is None
    monkeypatch.setenv("SOFTCPT_CACHE", "~/features")
    assert cache_folder() == Path.home() / "features"


def test_it_is_on_without_being_asked_for(suite, toy, tmp_path, monkeypatch):
    monkeypatch.delenv("SOFTCPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(cache_place.sys, "platform", "linux")
    run = train(suite, toy, tmp_path / "run", shots=1, **QUICK)
    file = tmp_path / "caches" / "softcpt" / FILE
    assert file.exists()
    before = file.stat().st_size
    evaluate(run, backbone=toy)
    assert file.stat().st_size >= before
    with FeatureCache(file.parent, 10**9) as cache:
        [kept] = cache.contents()
    assert kept.backbone == toy.name
    assert kept.entries > kept.images


def test_no_cache_writes_nothing(suite, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE", str(tmp_path / "cache"))
    run = train(suite, toy, tmp_path / "run", shots=1, cache=False, **QUICK)
    evaluate(run, backbone=toy, cache=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("system", "environment", "wanted"),
    [
        ("linux", {}, "{home}/.cache/softcpt"),
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/softcpt"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "{home}/.cache/softcpt"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "{home}/Library/Caches/softcpt"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/softcpt/Cache"),
        ("win32", {}, "{home}/AppData/Local/softcpt/Cache"),
    ],
)
def test_each_system_has_its_place_for_caches(system, environment, wanted):
    assert cache_place._user_folder(system, environment) == Path(wanted.format(home=Path.home()))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("12", 12), ("500MB", 500e6), ("2 GB", 2e9), ("1.5gb", 1.5e9), ("3k", 3e3), (" 1TB ", 1e12)],
)
def test_sizes_are_read_as_people_write_them(text, n_bytes):
    assert parse_size(text, where="here") == n_bytes


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1PB", "GB", "1 2", "1e9", "nan"])
def test_what_is_no_size_is_a_fault(text):
    with pytest.raises(ConfigError, match=r"here.*no size.*500MB"):
        parse_size(text, where="here")


def test_sizes_are_shown_short():
    assert [show_size(n) for n in (0, 999, 1000, 1_500_000, 10**10)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "1.5 MB",
        "10.0 GB",
    ]


def test_a_limit_that_is_none_is_told_with_the_other_faults(suite, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOFTCPT_CACHE_LIMIT", "plenty")
    with pytest.raises(ConfigError) as caught:
        train(suite, toy, tmp_path / "run", epochs=0)
    assert {fault.where for fault in caught.value.faults} == {"epochs", "SOFTCPT_CACHE_LIMIT"}
    assert not (tmp_path / "run").exists()


def test_the_limit_of_the_environment_holds(suite, toy, records, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCPT_CACHE_LIMIT", "0.2MB")
    assert limit_bytes() == 200_000
    with open_cache(tmp_path / "cache") as cache:
        ImageFeatures(toy, cache=cache).views(
            [record for _ in range(50) for record in records], [v for v in range(50) for _ in records]
        )
    assert (tmp_path / "cache" / FILE).stat().st_size <= 200_000


def test_a_cache_that_fails_does_not_fail_the_run(suite, toy, tmp_path):
    (tmp_path / "file").touch()
    run = train(suite, toy, tmp_path / "run", shots=1, cache=tmp_path / "file", **QUICK)
    assert "going on without" in (run.path / "log.txt").read_text()
    assert stored(run) == stored(train(suite, toy, tmp_path / "other", shots=1, cache=False, **QUICK))
