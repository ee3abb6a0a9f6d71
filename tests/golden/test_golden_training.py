"""Six-step trajectories, plain and with the published repeated steps, and every learning rate."""

from __future__ import annotations

import pytest
import torch
from reference import (
    assert_close,
    backbone,
    build,
    golden_folder,
    images,
    joined,
    optim_spec,
    read_json,
    under,
)
from safetensors.torch import load_file

from softcpt.engine import loop
from softcpt.engine.config import TrainConfig
from softcpt.engine.optim import build_optimizer, learning_rate, set_learning_rate, take_step

SCHEDULES = read_json("schedules.json")
TRAJECTORIES = read_json("trajectories.json")
CASES = read_json("cases.json")["cases"]
# The loop has the published warm-up, constant, or none.
CONSTANT = ("constant", None)
RUNS = [
    (name, mode)
    for name, run in TRAJECTORIES["runs"].items()
    for mode in ("plain", "repeated")
    if mode in run
]


@pytest.mark.parametrize("setting", SCHEDULES)
def test_learning_rates_equal_the_published_scheduler(setting):
    entry = SCHEDULES[setting]
    for key, rates in entry.items():
        if not key.startswith("steps_per_epoch_"):
            continue
        spec = optim_spec(entry["optim"], int(key.removeprefix("steps_per_epoch_")))
        ours = [learning_rate(spec, epoch) for epoch in range(len(rates))]
        assert ours == pytest.approx(rates, rel=1e-9, abs=1e-12)


def trainer_of(run) -> str:
    return "MTCoOpHard" if "TSC" in run["options"] else "MTCoOp"


def clip_of(run, tensors) -> str:
    """The model a trajectory was made with: named, or the one whose width fits its contexts."""
    if "clip" in run:
        return run["clip"]
    width = next(t.shape[-1] for key, t in tensors.items() if key.startswith("start.") and "context" in key)
    sizes = read_json("world.json")["clip"]
    return next(name for name, size in sizes.items() if size["transformer_width"] == width)


# All runs go through the fast text encoder; one of them through the plain one too.
WAYS = [(*run, "fast") for run in RUNS] + [(*run, "plain") for run in RUNS[:1]]


@pytest.mark.parametrize(("name", "mode", "text_path"), WAYS)
def test_six_steps_end_where_the_published_loop_ends(name, mode, text_path):
    folder, run = golden_folder(), TRAJECTORIES["runs"][name]
    expected = run[mode]
    tensors = load_file(folder / "trajectories" / f"{name}.safetensors")
    clip = clip_of(run, tensors)
    case = {"clip": clip, "trainer": trainer_of(run), "options": run["options"]}
    classifier = build(folder, case, under(tensors, "start."), torch.float32, text_path)
    world, features = classifier.problem, images(folder, clip)
    repeated = expected["optimizer_steps_per_batch"]
    assert repeated == (len(run["registered_names"]) if mode == "repeated" else 1)
    spec = optim_spec(run["optim"], repeated, TRAJECTORIES["momentum"], TRAJECTORIES["weight_decay"])
    optimizer = build_optimizer(classifier.parameters(), spec)
    first = torch.tensor(world.first_column)

    losses = []
    for i, batch in enumerate(TRAJECTORIES["batches"]):
        rate = learning_rate(spec, i // TRAJECTORIES["batches_per_epoch"])
        assert rate == pytest.approx(expected["lr_at_batch"][i], rel=1e-9, abs=1e-12)
        set_learning_rate(optimizer, rate)
        columns = first[torch.tensor(batch["task_ids"])] + torch.tensor(batch["class_ids"])
        loss = classifier.loss(features[batch["image_rows"]], columns, rng=torch.Generator())
        losses.append(float(loss.detach()))
        take_step(optimizer, loss, spec)

    reference = torch.tensor(expected["losses"])
    assert_close(torch.tensor(losses), reference, what="losses", scale=1e-4, floor=0)
    end = joined(under(tensors, f"end.{mode}."))
    learned = dict(classifier.named_parameters())
    assert end
    for key, tensor in end.items():
        assert_close(learned[key].detach(), tensor, what=f"end of {key}", scale=1e-4, floor=0)
    with torch.no_grad():
        logits = classifier.logits(features)
    after = tensors[f"logits_after.{mode}"]
    assert_close(logits, after, what="logits after", scale=1e-4, floor=1e-4)


class GivenFeatures:
    """Image features by row, in the place of decoded and encoded images."""

    precision = "fp32"

    def __init__(self, backbone, features):
        self.backbone, self.features = backbone, features
        self.shape = tuple(features.shape[1:])

    def views(self, rows, views, on_done=None):
        return self.features[list(rows)]


class EnoughError(Exception):
    """The reference has no more steps."""


LOOP_RUNS = [
    (name, mode)
    for name, mode in RUNS
    if TRAJECTORIES["runs"][name]["optim"].get("WARMUP_TYPE") in CONSTANT
    and TRAJECTORIES["runs"][name]["optim"].get("WARMUP_RECOUNT", True)
]


@pytest.mark.parametrize(("name", "mode"), LOOP_RUNS)
def test_the_training_loop_itself_takes_the_published_steps(name, mode, monkeypatch):
    folder, run = golden_folder(), TRAJECTORIES["runs"][name]
    expected, optim = run[mode], run["optim"]
    tensors = load_file(folder / "trajectories" / f"{name}.safetensors")
    clip = clip_of(run, tensors)
    case = {"clip": clip, "trainer": trainer_of(run), "options": run["options"]}
    classifier = build(folder, case, under(tensors, "start."), torch.float32)
    batches, per_epoch = TRAJECTORIES["batches"], TRAJECTORIES["batches_per_epoch"]
    first = torch.tensor(classifier.problem.first_column)
    rows = [row for batch in batches for row in batch["image_rows"]]
    tasks = [task for batch in batches for task in batch["task_ids"]]
    labels = torch.tensor([label for batch in batches for label in batch["class_ids"]])
    ends = torch.tensor([len(batch["image_rows"]) for batch in batches]).cumsum(0).tolist()
    spans = [list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    epochs = iter([spans[i : i + per_epoch] for i in range(0, len(spans), per_epoch)])
    monkeypatch.setattr(loop, "epoch_batches", lambda *_: next(epochs))
    settings = TrainConfig(
        lr=optim["LR"],
        epochs=optim["MAX_EPOCH"],
        momentum=TRAJECTORIES["momentum"],
        weight_decay=TRAJECTORIES["weight_decay"],
        warmup_epochs=max(0, optim.get("WARMUP_EPOCH", -1)),
        warmup_lr=optim.get("WARMUP_CONS_LR", 1e-5),
        repeated_steps=expected["optimizer_steps_per_batch"],
        views=0,
    )
    steps = []

    def stop_in_time(step):
        steps.append(step)
        if len(steps) == len(batches):
            raise EnoughError

    # The loop tells of a step after it was taken, so that the end is that of the last batch.
    with pytest.raises(EnoughError):
        loop.fit(
            classifier,
            loop.Pool(rows, first[torch.tensor(tasks)] + labels, tasks),
            GivenFeatures(backbone(folder, clip, torch.float32), images(folder, clip)),
            settings,
            shots=1,
            seed=1,
            part="all tasks",
            on_step=stop_in_time,
        )
    assert [step.learning_rate for step in steps] == pytest.approx(expected["lr_at_batch"], rel=1e-9)
    losses = torch.tensor([step.loss for step in steps])
    assert_close(losses, torch.tensor(expected["losses"]), what="losses", scale=1e-4, floor=0)
    learned = dict(classifier.named_parameters())
    for key, tensor in joined(under(tensors, f"end.{mode}.")).items():
        assert_close(learned[key].detach(), tensor, what=f"end of {key}", scale=1e-4, floor=0)
