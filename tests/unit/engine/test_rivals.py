"""Runs of the rival prompt methods: from training to predictions, and the equalities between methods."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower

from softcpt.clip.backbone import load_backbone
from softcpt.clip.toy import toy_backbone, write_toy_backbone
from softcpt.core.errors import BackboneError, ConfigError, SuiteError
from softcpt.data.suite import load_suite
from softcpt.deploy.predictor import Predictor
from softcpt.engine import adapter, features
from softcpt.engine import evaluate as evaluate_module
from softcpt.engine.check import check_suite
from softcpt.engine.config import resolve
from softcpt.engine.encoder_key import encoder_key
from softcpt.engine.evaluate import evaluate
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.features import ImageFeatures
from softcpt.engine.runs import open_run
from softcpt.engine.train import train
from softcpt.methods.prograd import ProGrad

RIVALS = {
    "cocoop": {"shots": 1},
    "prograd": {},
    "kgcoop": {},
    "plot": {"prompts": 2},
    "mvlpt": {"context_length": 4},
}


def stored(run):
    return run.adapter.tensors


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", RIVALS)
def test_a_run_is_trained_scored_and_used_and_both_uses_agree(quick, suite, toy, tmp_path, method):
    run = quick(method, **RIVALS[method])
    assert not run.split["notes"] or method == "plot"
    scored = evaluate(run, backbone=toy)
    assert 0 <= scored.score <= 1
    known = {(entry.task, entry.image): entry for entry in scored.predictions}
    images = [entry.image for entry in scored.predictions[::7]]
    predictor = Predictor(run, backbone=toy, device="cpu")
    paths = [suite.root / image for image in images]
    for row in predictor.predict(paths, top=None):
        entry = known.get((row.task, Path(row.image).relative_to(suite.root).as_posix()))
        if entry is None:  # another task's image
            continue
        classes = next(task.classes for task in predictor.tasks if task.name == row.task)
        mine = dict(row.predictions)
        assert max(mine, key=mine.get) == entry.predicted
        assert [mine[name] for name in classes] == pytest.approx(list(entry.probabilities), abs=1e-5)
    again = train(suite, toy, tmp_path / "again", config=run.path / "config.json")
    assert all(torch.equal(stored(again)[name], tensor) for name, tensor in stored(run).items())


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("kgcoop", {"pull": 1.0}), ("kgcoop", {"distance": "l2"}), ("kgcoop", {"position": "front"}),
        ("kgcoop", {"init_words": "an image of"}), ("kgcoop", {"init_words": "", "context_length": 3}),
        ("prograd", {"context_length": 20}),
        ("plot", {"prompts": 3}), ("plot", {"epsilon": 0.5}), ("plot", {"add_global": True}),
        ("plot", {"tolerance": 1e-8}), ("plot", {"iterations": 1}), ("plot", {"context_length": 4}),
        ("mvlpt", {"shared_epochs": 0.25}), ("mvlpt", {"softmax": "joint"}), ("mvlpt", {"source_runs": 2}),
        ("mvlpt", {"position": "end"}),
    ],
)  # fmt: skip
def test_every_option_of_theirs_has_an_effect(quick, method, keys):
    common = {"epochs": 4, "keep": "last", "views": 1} if method == "mvlpt" else {"epochs": 2, "views": 1}
    base, other = quick(method, **common), quick(method, **{**common, **keys})
    assert any(
        stored(base)[name].shape != stored(other)[name].shape
        or not torch.equal(stored(base)[name], stored(other)[name])
        for name in stored(base)
    )


# What a method needs of the loop


def test_prograd_steps_along_the_aligned_gradient(quick, monkeypatch):
    """The loop asks the classifier for its gradients."""
    asked = []
    true = ProGrad.backward
    monkeypatch.setattr(ProGrad, "backward", lambda self, losses: asked.append(1) or true(self, losses))
    run = quick("prograd", views=1)
    assert len(asked) == len(lines(run))


def test_cocoop_shows_one_image_a_step_unless_asked_otherwise(quick):
    settings = resolve({"method": "cocoop"})
    assert settings.training().batch_size == 1
    assert settings.origins["batch_size"] == "method cocoop"
    assert resolve({"method": "cocoop", "batch_size": "4"}).training().batch_size == 4
    run = quick("cocoop", shots=1, epochs=1, views=1, batch_size=1)
    assert {line["images"] for line in lines(run)} == {1}
    assert len(lines(run)) == len(run.adapter.facts["samples"]["train"])


@pytest.mark.parametrize("method", ["cocoop", "prograd", "kgcoop", "plot"])
def test_options_that_need_all_tasks_in_a_batch_are_refused_without_naming_a_method_there_is_not(method):
    with pytest.raises(ConfigError) as caught:
        resolve({"method": method, "balance": "tasks"})
    assert "-joint" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        resolve({"method": method, "recipe": "published"})
    assert "-joint" not in str(caught.value)


def test_an_evaluation_in_pieces_is_that_of_all_images_together(quick, toy, monkeypatch):
    run = quick("plot", prompts=2, epochs=1, views=1)
    whole, told = evaluate(run, backbone=toy), []
    monkeypatch.setattr(evaluate_module, "FEATURES_BYTES", 4 * 17 * toy.embed_dim * 10)
    pieces = evaluate(run, backbone=toy, on_progress=lambda progress: told.append(progress.done))
    assert pieces.to_json() == whole.to_json()
    for ours, theirs in zip(pieces.predictions, whole.predictions, strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)
    assert told == sorted(told)
    assert told[-1] == len(whole.predictions)


# MVLPT's stages


def test_mvlpt_without_a_second_stage_is_coop_mt(quick):
    hard = quick("coop-mt")
    run = quick("mvlpt", shared_epochs=1.0, keep="last", position="end")
    assert torch.equal(stored(run)["shared.context"], stored(hard)["context"])
    assert all(torch.equal(stored(run)[f"tasks.{t}.context"], stored(hard)["context"]) for t in range(3))
    assert set(run.result["epochs"]) == {"all tasks"}


def test_mvlpt_without_a_first_stage_is_coop_ca_from_the_same_start(quick, monkeypatch):
    true = adapter.init_streams
    monkeypatch.setattr(adapter, "init_streams", lambda seed, part: true(seed, "one start for all"))
    alone = quick("coop-ca")
    run = quick("mvlpt", shared_epochs=0.0, keep="last", position="end")
    for t in range(3):
        assert torch.equal(stored(run)[f"tasks.{t}.context"], stored(alone)[f"tasks.{t}.context"][0])


def test_each_stage_has_its_own_epochs_rates_and_best_epoch(quick):
    run = quick("mvlpt", epochs=6, shared_epochs=0.5, context_length=4)
    tasks = [task.name for task in run.adapter.tasks]
    assert list(run.result["epochs"]) == ["all tasks", *tasks]
    assert {trained["epochs"] for trained in run.result["epochs"].values()} == {3}
    for part in ("all tasks", *tasks):
        own = [line for line in lines(run) if line["part"] == part]
        rates = [line["learning_rate"] for line in own if "loss" in line]
        assert rates[0] == 1e-5
        assert max(rates) == 0.02
        scores = {line["epoch"]: line["val_score"] for line in own if "val_score" in line}
        assert run.result["epochs"][part]["kept"] == max(scores, key=scores.get)


def test_the_best_epoch_needs_val_images(quick):
    with pytest.raises(SuiteError, match="keep=best"):
        quick("mvlpt", split="all")
    assert quick("mvlpt", split="all", keep="last").result["n_val"] == 0


def test_the_best_epoch_of_any_method_can_be_kept(quick):
    run = quick("coop-mt", epochs=4, keep="best", lr=0.2)
    scores = [line["val_score"] for line in lines(run) if "val_score" in line]
    assert run.result["epochs"]["all tasks"] == {"epochs": 4, "kept": scores.index(max(scores))}
    assert run.result["val_score"] == max(scores)


# PLOT's regions


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return load_backbone(write_toy_backbone(tmp_path_factory.mktemp("weights") / "resnet", kind="resnet"))


def test_the_number_of_regions_is_stated_and_few_are_marked(suite, resnet, toy, tmp_path, quick):
    keys = {"method": "plot", "shots": 1, "epochs": 2, "views": 1, "device": "cpu", "prompts": 2}
    few = train(suite, resnet, tmp_path / "few", **keys)
    assert few.result["regions"] == 4
    [note] = few.split["notes"]
    assert "4 regions" in note
    assert "not representative" in note
    assert note in evaluate(few, backbone=resnet).notes
    assert note in check_suite(suite, backbone=resnet, overrides={"method": "plot", "shots": "1"}).notes
    many = quick("plot", prompts=2)
    assert many.result["regions"] == 16
    assert not any("not representative" in note for note in many.split["notes"])
    assert any("ViT" in note for note in many.split["notes"])
    assert 0 < many.result["measured"][many.adapter.tasks[0].name]["plan_entropy"] <= 1
    assert "regions" not in quick("coop-mt").result


def test_zero_shot_beside_plot_is_zero_shot_beside_any_other(suite, resnet, tmp_path):
    keys = {"shots": 1, "epochs": 1, "views": 1, "device": "cpu"}
    beside = [
        evaluate(train(suite, resnet, tmp_path / method, method=method, **keys), backbone=resnet)
        for method in ("plot", "kgcoop")
    ]
    assert [task.zero_shot for task in beside[0].tasks] == [task.zero_shot for task in beside[1].tasks]


def test_kept_features_of_regions_and_of_images_are_told_apart(suite, resnet, tmp_path, monkeypatch):
    records = suite.records[:5]
    whole, pooled = encoder_key(resnet, "fp32", "tokens"), encoder_key(resnet, "fp32")
    assert whole != pooled
    assert whole.dim == 5 * pooled.dim

    def open_features(kind):
        return ImageFeatures(resnet, "fp32", FeatureCache(tmp_path / "cache", 10**9), kind)

    images = open_features("pooled").centres(records)
    tokens = open_features("tokens").centres(records)
    monkeypatch.setattr(features, "encode_pixels", None)  # from here on all comes from the disk
    assert torch.equal(open_features("tokens").centres(records), tokens)
    assert torch.equal(open_features("pooled").centres(records), images)
    assert torch.equal(tokens[:, 0], images)
    assert tokens.shape == (5, 5, resnet.embed_dim)


def test_a_full_cache_and_none_give_the_same_run_with_regions(suite, resnet, tmp_path):
    keys = {"method": "plot", "shots": 1, "epochs": 2, "views": 2, "device": "cpu", "prompts": 2}
    runs = [
        train(suite, resnet, tmp_path / name, cache=cache, **keys)
        for name, cache in (("none", False), ("cold", tmp_path / "cache"), ("warm", tmp_path / "cache"))
    ]
    assert len({(run.path / "adapter.safetensors").read_bytes() for run in runs}) == 1


def test_features_of_a_region_depend_on_the_picture_alone(resnet):
    pixels = torch.randn(20, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = features.encode_alike(resnet, pixels, "fp32", "tokens")
    for n in (1, 15, 17):
        assert torch.equal(features.encode_alike(resnet, pixels[-n:], "fp32", "tokens"), whole[-n:])


def test_more_features_than_may_be_known_are_forgotten_and_found_again(suite, toy, monkeypatch):
    records = suite.records[:6]
    known = ImageFeatures(toy, kind="tokens")
    expected = known.centres(records)
    monkeypatch.setattr(features, "KNOWN_BYTES", 1000)
    forgetful = ImageFeatures(toy, kind="tokens")
    for _ in range(2):
        assert torch.equal(forgetful.centres(records), expected)
        assert not forgetful._known


def test_a_backbone_without_regions_is_refused_before_anything_is_trained(suite, tmp_path):
    timm = CLIPVisionCfg(
        timm_model_name="convnext_atto", timm_model_pretrained=False, timm_pool="", timm_proj="linear",
        image_size=32,
    )  # fmt: skip
    backbone = replace(toy_backbone(), visual=_build_vision_tower(32, timm).eval())
    with pytest.raises(BackboneError, match="no features of regions"):
        train(suite, backbone, tmp_path / "run", method="plot", device="cpu")
    assert not (tmp_path / "run").exists()


def test_check_measures_every_rival(suite, toy):
    for method in RIVALS:
        cost = check_suite(
            suite, backbone=toy, overrides={"method": method, "shots": "1", "epochs": "2"}
        ).cost
        assert cost.train_s > 0, method
        assert cost.n_learned > 0
        if method == "cocoop":
            alone = cost.evaluate_s
    assert alone > 2 * cost.evaluate_s  # every test image needs texts
    mvlpt = check_suite(suite, backbone=toy, overrides={"method": "mvlpt", "shots": "1", "epochs": "4"}).cost
    assert mvlpt.steps == 2 * 1 + 3 * 2 * 1  # two epochs of one batch, then two for each of three tasks


def test_a_run_is_read_back_with_all_it_needs(quick):
    run = quick("mvlpt", source_runs=2, context_length=4)
    again = open_run(run.path)
    assert set(again.adapter.tensors) == {"shared.context", *(f"tasks.{t}.context" for t in range(3))}
    assert load_suite(run.split["source"]).name == run.adapter.suite
