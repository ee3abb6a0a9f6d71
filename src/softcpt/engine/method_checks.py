"""What every method has to keep to, as checks that run: for our own methods and for those of others.

They train on two drawn tasks and a toy CLIP, a few steps each time. :data:`CHECKS` is the list; each is a
function that says what is wrong, or None. Check a method of your own in its tests by

    assert not [o for o in check_method(MINE) if o.result == "failed"]
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from softcpt.core.errors import Collector, ConfigError, Fault, SoftCPTError
from softcpt.engine.config import (
    DataConfig,
    EncoderConfig,
    RunConfig,
    TrainConfig,
    keys_of,
    resolve,
    values_of,
)
from softcpt.engine.method_bench import Bench, Trial, open_bench
from softcpt.engine.prepare import Prepared
from softcpt.methods.base import (
    TRIALS,
    Classifier,
    Method,
    MethodConfig,
    fitted_parts,
    n_parameters,
)
from softcpt.methods.outside import KEY
from softcpt.methods.registry import lend, list_methods

FIXED = ("method", "backbone", "device", "split")
"""Keys that the checks set themselves."""

ROUNDING = 1e-4
"""Of the largest score: what another batch, order of additions or text path may change in fp32."""


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: the check's.
        about: what it asks for.
        result: ``skipped`` where it does not apply, or another check has to pass first.
        why: what is wrong, or why it was skipped.
    """

    name: str
    about: str
    result: Literal["passed", "failed", "skipped"]
    why: str = ""


def check_entry(trial: Trial) -> str | None:
    """Key, label, summary and options are in order; no other method has the label."""
    method = trial.method
    wrong = []
    if not re.fullmatch(KEY, method.key):
        wrong.append(f"key {method.key!r} is not made of a-z, 0-9 and single -, . or + between them")
    wrong += [
        f"{name} is not one line of text"
        for name in ("label", "summary")
        if not re.fullmatch(r"\S(.*\S)?", getattr(method, name))
    ]
    wrong += [
        f"label {method.label!r} is that of {other.key}: tables could not tell them apart"
        for other in list_methods()
        if other.key != method.key and other.label == method.label
    ]
    if method.shares and method.separate:
        wrong.append("shares=True, but separate=True trains each task by itself")
    config = method.config
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        return "; ".join([*wrong, "config is no subclass of MethodConfig"])
    if not config.model_config.get("frozen"):
        wrong.append("config is not frozen")
    if config.model_config.get("extra") != "forbid":
        wrong.append("config does not refuse unknown keys")
    models = (RunConfig, DataConfig, EncoderConfig, *((TrainConfig,) if method.trains else ()))
    shared = {key for model in models for key in model.model_fields}
    for key, field in config.model_fields.items():
        if not re.fullmatch(r"[a-z][a-z_]*", key):
            wrong.append(f"option {key!r} is not made of a-z and _")
        if key in shared:
            wrong.append(f"option {key!r} is a key of every run already")
        if not field.description:
            wrong.append(f"option {key!r} has no description")
    wrong += [f"defaults: there is no key {key!r}" for key in method.defaults if key not in keys_of(method)]
    return "; ".join([*wrong, *_wrong_values(method)]) or None


def _wrong_values(method: Method) -> list[str]:
    """What is wrong with defaults and with what is tuned."""
    try:
        method.config.model_validate({})
        settings = resolve({"method": method.key})
        again = resolve(values_of(settings.stored()))
    except (ValidationError, SoftCPTError) as error:
        return [f"the defaults are refused: {_one_line(error)}"]
    wrong = []
    if again.stored().keys() != settings.stored().keys() or again.own != settings.own:
        wrong.append("options that were stored are read as others")
    tunes = method.tunes or {}
    points = list(product(*tunes.values()))
    if len(points) > TRIALS:
        return [*wrong, f"tunes asks for {len(points)} trainings; a cell may spend {TRIALS}"]
    collector = Collector()
    for point in points:
        given = {"method": method.key, **dict(zip(tunes, point, strict=True))}
        collector.keep(lambda given=given: resolve(given))  # type: ignore[misc]
    return [*wrong, *(f"tunes: {_one_line(error)}" for error in collector.errors)]


def check_training(trial: Trial) -> str | None:
    """It learns two tasks of other sizes, without an error."""
    if trial.method.fits and not fitted_parts(trial.trained.classifier):
        return "fits=True, but build makes no FittedClassifier"
    trial.scores(trial.trained.classifier)
    return None


def check_scores(trial: Trial) -> str | None:
    """Scores are [images, classes of the task], and numbers."""
    problem = trial.trained.classifier.problem
    for t, scores in enumerate(trial.scores(trial.trained.classifier)):
        wanted = (len(trial.images[t]), len(problem.tasks[t].classes))
        if tuple(scores.shape) != wanted:
            return f"task {t}: shape {tuple(scores.shape)}, not {wanted}"
        if not scores.isfinite().all():
            return f"task {t}: some are not finite"
    return None


def check_batch(trial: Trial) -> str | None:
    """An image's scores do not depend on the images beside it."""
    with torch.no_grad():
        score = trial.trained.classifier.scorer()
        for t, images in enumerate(trial.images):
            alone = torch.cat([score(image[None], t) for image in images])
            if not _near(alone, score(images, t)):
                return f"task {t}: one image at a time has other scores than all at once"
    return None


def check_frozen(trial: Trial) -> str | None:
    """The backbone's text tower stays as it is, and is none of the classifier's parameters."""
    tower, before = trial.trained.backbone.text, trial.bench.backbone.text.state_dict()
    changed = [name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])]
    if changed:
        return f"changed: {', '.join(changed[:3])}"
    theirs = {id(p) for p in tower.parameters()}
    own = [name for name, p in trial.trained.classifier.named_parameters() if id(p) in theirs]
    if own:
        return f"{own[0]} is the tower's; keep towers in a tuple, as Classifier keeps its problem"
    thawed = [name for name, p in tower.named_parameters() if p.requires_grad]
    return f"{thawed[0]} asks for gradients now" if thawed else None


def check_parameters(trial: Trial) -> str | None:
    """Parameters are what is learned: all are stored and, where the loop trains, get a gradient."""
    classifier = trial.trained.classifier
    learned = classifier.learned()
    missing = [name for name, p in classifier.named_parameters() if p.numel() and name not in learned]
    if missing:
        return f"learned() leaves out {', '.join(missing)}"
    if not trial.method.trains:
        return None
    if not n_parameters(classifier):
        return "trains=True, but there is no parameter"
    classifier.zero_grad()
    for stage in classifier.stages():
        stage.classifier.backward(trial.losses(trial.trained, stage))
    still = [name for name, p in classifier.named_parameters() if not _is_learned(classifier, name, p)]
    classifier.zero_grad()
    return f"no gradient reaches {', '.join(still)}; what is not learned is a buffer" if still else None


def _is_learned(classifier: Classifier, name: str, parameter: Tensor) -> bool:
    """Whether there is a gradient, nothing to give one to, it is fitted, or the module asks for none."""
    place, _, own = name.rpartition(".")
    excused = getattr(classifier.get_submodule(place), "no_gradient", ())
    graded = parameter.grad is not None and bool(parameter.grad.any())
    fitted = bool(fitted_parts(classifier)) and not parameter.requires_grad
    return graded or not parameter.numel() or own in excused or fitted


def check_repeated(trial: Trial) -> str | None:
    """The same seed gives the same tensors and the same scores."""
    return _difference(trial, trial.trained, trial.train())


def check_test_images(trial: Trial) -> str | None:
    """No test image is looked at: with test images that cannot be read, all that is learned is the same."""
    return _difference(trial, trial.trained, trial.train(trial.bench.spoilt))


def check_stored(trial: Trial) -> str | None:
    """What is stored is all there is: read again, it gives the same scores; reports are JSON."""
    run = trial.trained
    tuned = [part.tuned() for part, _ in fitted_parts(run.classifier)]
    json.dumps([run.classifier.report(), tuned], allow_nan=False)
    if n_parameters(trial.restored) != n_parameters(run.classifier):
        return "it has another number of parameters when it is read again"
    pairs = zip(trial.scores(run.classifier), trial.scores(trial.restored), strict=True)
    far = [t for t, (ours, theirs) in enumerate(pairs) if not _near(ours, theirs)]
    return f"task {far[0]}: other scores when it is read again; is all of it in learned()?" if far else None


def check_text_paths(trial: Trial) -> str | None:
    """Both text encoders give the same scores and losses: text_encoder=fast and plain."""
    plain = trial.restore(trial.trained.settings.encoder.model_copy(update={"text_encoder": "plain"}))
    pairs = zip(trial.scores(trial.restored), trial.scores(plain), strict=True)
    far = [t for t, (fast, slow) in enumerate(pairs) if not _near(fast, slow)]
    if far:
        return f"task {far[0]}: other scores with text_encoder=plain"
    if not trial.method.trains:
        return None
    for ours, theirs in zip(trial.restored.stages(), plain.stages(), strict=True):
        fast, slow = (trial.losses(trial.trained, stage) for stage in (ours, theirs))
        if not all(_near(one, other) for one, other in zip(fast, slow, strict=True)):
            return "another loss with text_encoder=plain"
    return None


def check_one_task(trial: Trial) -> str | None:
    """A suite of one task is enough."""
    return _unusable(trial, trial.alone)


def check_separate(trial: Trial) -> str | None:
    """With separate=True, a task's scores do not depend on the other tasks."""
    with torch.no_grad():
        alone = trial.alone.classifier.scorer()(trial.images[-1], 0)
    together = trial.scores(trial.trained.classifier)[-1]
    return None if _near(alone, together) else "the last task scores otherwise when it is the only one"


def check_without_val(trial: Trial) -> str | None:
    """It works without val images: split=all."""
    records = tuple(replace(record, part=None) for record in trial.bench.suite.records)
    suite = replace(trial.bench.suite, records=records)
    keys = {"keep": "last"} if trial.method.trains else {}  # the best epoch on val is not to be had
    return _unusable(trial, trial.train(suite, split="all", **keys))


@dataclass(frozen=True)
class Check:
    """An entry of the list.

    Attributes:
        name: for people.
        find: what is wrong, or None.
        needs: checks without which it says nothing.
        where: methods that it applies to, and why not to others.
    """

    name: str
    find: Callable[[Trial], str | None]
    needs: Sequence[str] = ("training",)
    where: tuple[Callable[[Method], bool], str] = (lambda _: True, "")

    @property
    def about(self) -> str:
        """What it asks for."""
        return (self.find.__doc__ or "").strip()


CHECKS = (
    Check("entry", check_entry, ()),
    Check("training", check_training, ()),
    Check("scores", check_scores),
    Check("batch", check_batch),
    Check("frozen", check_frozen),
    Check("parameters", check_parameters),
    Check("repeated", check_repeated),
    Check("test images", check_test_images, ("training", "repeated")),
    Check("stored", check_stored),
    Check("text paths", check_text_paths, ("training", "stored")),
    Check("one task", check_one_task),
    Check(
        "separate",
        check_separate,
        ("training", "repeated", "one task"),
        (lambda method: method.separate, "it learns all tasks together"),
    ),
    Check("without val", check_without_val),
)


def check_method(
    method: Method, settings: Mapping[str, Any] | None = None, *, bench: Bench | None = None
) -> Iterator[Outcome]:
    """Run all checks, each outcome as soon as it is known.

    Args:
        method: need not be installed.
        settings: keys and values for all trainings, for example to make them short.
        bench: one that is open already.

    Raises:
        ConfigError: softcpt has another method of that key, or the method does not take the settings.
    """
    if bench is None:
        with open_bench() as own:
            yield from check_method(method, settings, bench=own)
        return
    given = dict(settings or {})
    faults = [Fault(key, f"{method.key} has no such option") for key in given if key not in keys_of(method)]
    faults += [Fault(key, "is for the checks to say", "leave it out") for key in given if key in FIXED]
    if faults:
        raise ConfigError(faults, about="the options")
    trial = Trial(method, bench, given)
    passed: dict[str, bool] = {}
    for check in CHECKS:
        with lend(method):
            outcome = _outcome(check, trial, passed)
        passed[check.name] = outcome.result == "passed"
        yield outcome


def _outcome(check: Check, trial: Trial, passed: Mapping[str, bool]) -> Outcome:
    applies, why_not = check.where
    if not applies(trial.method):
        return Outcome(check.name, check.about, "skipped", why_not)
    missing = [name for name in check.needs if not passed[name]]
    if missing:
        return Outcome(check.name, check.about, "skipped", f'"{missing[0]}" has to pass first')
    try:
        wrong = check.find(trial)
    except Exception as error:  # whatever the code of others may raise: it is what was found
        wrong = f"{_one_line(error)}{_place(error)}"
    return Outcome(check.name, check.about, "failed" if wrong else "passed", wrong or "")


def _one_line(error: Exception) -> str:
    if isinstance(error, SoftCPTError):
        return "; ".join(str(fault) for fault in error.faults)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place(error: Exception) -> str:
    """The last line of code outside the libraries that it went through."""
    if isinstance(error, SoftCPTError):
        return ""
    here = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if here not in Path(f.filename).parents and "site-packages" not in f.filename]
    frame = (theirs or frames)[-1]
    return f" ({Path(frame.filename).name}, line {frame.lineno})"


def _near(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding; also where both are of another shape than they should be."""
    if ours.shape != theirs.shape:
        return False
    largest = float(ours.detach().nan_to_num().abs().max()) if ours.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=0.0, atol=ROUNDING * max(1.0, largest), equal_nan=True)


def _difference(trial: Trial, one: Prepared, other: Prepared) -> str | None:
    """Between two trainings that should be the same to the last bit."""
    ours, theirs = one.classifier.learned(), other.classifier.learned()
    if ours.keys() != theirs.keys():
        return f"other tensors: {', '.join(sorted(ours.keys() ^ theirs.keys()))}"
    differ = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    if differ:
        return f"differs: {', '.join(differ[:3])}"
    pairs = zip(trial.scores(one.classifier), trial.scores(other.classifier), strict=True)
    if not all(torch.equal(a, b) for a, b in pairs):
        return "the scores differ, though the learned tensors do not"
    return None


def _unusable(trial: Trial, run: Prepared) -> str | None:
    """Why the last task's images get no scores from a run."""
    last = len(run.suite.tasks) - 1
    with torch.no_grad():
        scores = run.classifier.scorer()(trial.images[-1], last)
    return None if bool(scores.isfinite().all()) else "some scores are not finite"
