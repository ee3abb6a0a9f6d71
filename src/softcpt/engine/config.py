"""A run's settings: four small models, one flat list of keys, and where each value came from.

Order, later wins: the field's default, the recipe, the configuration file, the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from softcpt.clip.text_shared import SAVED_GB
from softcpt.core.errors import ConfigError, Fault, nearest
from softcpt.core.yaml import YamlError, read_yaml
from softcpt.engine.optim import OptimSpec
from softcpt.methods.base import Method, MethodConfig
from softcpt.methods.registry import get_method, list_methods

Recipe = Literal["paper", "published"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Draw = Literal["product", "published", "published-per-task"]
Model = TypeVar("Model", bound=BaseModel)

COOP_EPOCHS = ((1, 50), (4, 100))
"""``epochs=coop``: 50 epochs for 1 shot, 100 for up to 4, 200 for more (CoOp's own, for 1, 2, 4, 8, 16)."""


def _shots(value: object) -> object:
    return None if value in ("all", None) else value


def _weights(value: object) -> object:
    """``leaf:2,flower:0.5`` -> a mapping; the named rules and mappings pass."""
    if not isinstance(value, str) or ":" not in value:
        return value
    pairs = [part.rpartition(":") for part in value.split(",")]
    return {name.strip(): number for name, _, number in pairs}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunConfig(_Settings):
    """What is run on what."""

    method: str = "softcpt-nata"
    recipe: Recipe = "paper"
    shots: Annotated[int | None, BeforeValidator(_shots)] = Field(
        16, ge=1, description="training images per class; all for every one"
    )
    seed: int = Field(1, ge=0, description="draws shots, initialisation, order and augmentation")
    backbone: str | None = Field(None, description="name/tag, hf-hub:org/model, a folder or a file")
    device: Device = "auto"


class DataConfig(_Settings):
    """Which images are used for what."""

    split: Literal["auto", "all"] = Field(
        "auto", description="auto: the suite's own parts, else 50/20/30 a class; all: train on everything"
    )
    split_seed: int = Field(0, ge=0, description="draws the parts, where the suite gives none")
    draw: Draw = Field("product", description="rule of the few-shot draw")


class EncoderConfig(_Settings):
    """How the frozen encoders run."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the encoders in training; fp16 on CUDA only"
    )
    text_encoder: Literal["fast", "plain"] = Field(
        "fast",
        description="fast: what prompts share is computed once; plain: each prompt alone, the reference",
    )
    text_memory_gb: float = Field(
        SAVED_GB,
        ge=0,
        allow_inf_nan=False,
        description="most that fast keeps of a set of prompts for gradients; the rest is computed twice",
    )


class TrainConfig(_Settings):
    """How a method is trained."""

    epochs: Annotated[int, Field(ge=1)] | Literal["coop", "auto"] = Field(
        50, description="a number; coop: 50/100/200 by shots; auto: at most 50, best on val"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="epoch whose parameters are kept; best: on val, as with epochs=auto"
    )
    lr: float = Field(0.002, gt=0, description="learning rate at the cosine's start")
    lr_factor: Annotated[float, Field(gt=0)] | Literal["task-norms", "top-eigenvalue"] = Field(
        1.0,
        description="of the rates; or SoftCPT's at its start: task-norms (mean |z|^2), top-eigenvalue",
    )
    joint_steps: bool = Field(False, description="separate trainings take as many steps as a joint one would")
    batch_size: int = Field(32, ge=1, description="images a batch, of all tasks")
    matmul: Literal["full", "fast"] = Field(
        "full", description="matrix products of a step; fast: in bfloat16 or TF32, where the hardware has it"
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="adam: AdamW, whose steps do not depend on the size of gradients; needs its own lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; Adam's first decay")
    weight_decay: float = Field(5e-4, ge=0, description="on everything learned")
    warmup_epochs: int = Field(1, ge=0, description="epochs at the warm-up rate, at the beginning")
    warmup_lr: float = Field(1e-5, gt=0, description="the warm-up's constant rate")
    repeated_steps: int = Field(
        1, ge=1, description="optimizer steps a batch and scheduler steps an epoch; published: the code's own"
    )
    balance: Literal["none", "tasks"] = Field(
        "none", description="none: one shuffled pool; tasks: every batch holds all tasks alike"
    )
    task_power: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="draws each image's task by its number of images to this power; none: one shuffled pool",
    )
    loss_weights: Annotated[
        Literal["none", "tasks", "log-classes"] | dict[str, Annotated[float, Field(gt=0)]],
        BeforeValidator(_weights),
    ] = Field(
        "none",
        description="none; tasks: every task counts alike; log-classes: divided by log C; or task:weight,...",
    )
    views: int = Field(16, ge=0, description="random views of an image; 0: the centre only")

    @model_validator(mode="after")
    def _factors_are_of_gradients(self) -> TrainConfig:
        if self.optimizer == "adam" and isinstance(self.lr_factor, str):
            raise ValueError(
                f"lr_factor={self.lr_factor} is of steps along gradients, and those of optimizer=adam are "
                "not; leave one of them out"
            )
        return self

    def optim(self, shots: int | None) -> OptimSpec:
        """What the optimiser is told.

        Raises:
            TypeError: the factor of the rate is still a name.
        """
        if isinstance(self.lr_factor, str):
            raise TypeError(f"lr_factor={self.lr_factor} needs the tasks; see engine/rates.py")
        return OptimSpec(
            lr=self.lr * self.lr_factor,
            epochs=self.n_epochs(shots),
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warmup="constant" if self.warmup_epochs else "none",
            warmup_steps=self.warmup_epochs,
            warmup_lr=self.warmup_lr * self.lr_factor,
            repeated_steps=self.repeated_steps,
        )

    @property
    def keeps_best(self) -> bool:
        """Whether val chooses the epoch."""
        return self.epochs == "auto" or self.keep == "best"

    def n_epochs(self, shots: int | None) -> int:
        """Length of training, and the cosine's period."""
        if self.epochs == "coop":
            return next((e for most, e in COOP_EPOCHS if shots is not None and shots <= most), 200)
        return 50 if self.epochs == "auto" else self.epochs


@dataclass(frozen=True)
class Settings:
    """A run's resolved settings.

    Attributes:
        run: what is run on what.
        data: which images.
        encoder: precision.
        train: None for methods that train nothing.
        own: the method's own options.
        origins: key -> where its value came from.
    """

    run: RunConfig
    data: DataConfig
    encoder: EncoderConfig
    train: TrainConfig | None
    own: MethodConfig
    origins: dict[str, str]

    @property
    def method(self) -> Method:
        """The method's entry in the registry."""
        return get_method(self.run.method)

    def training(self) -> TrainConfig:
        """The training settings of a method that trains."""
        if self.train is None:
            raise TypeError(f"{self.run.method} trains nothing")
        return self.train

    def stored(self) -> dict[str, dict[str, Any]]:
        """For the run folder: key -> value and origin."""
        flat: dict[str, Any] = {}
        for part in (self.run, self.data, self.encoder, self.train, self.own):
            if part is not None:
                flat |= part.model_dump(mode="json")
        return {key: {"value": value, "origin": self.origins[key]} for key, value in flat.items()}


_SHARED: tuple[type[BaseModel], ...] = (RunConfig, DataConfig, EncoderConfig)


def _models(method: Method) -> tuple[type[BaseModel], ...]:
    return (*_SHARED, *((TrainConfig,) if method.trains else ()), method.config)


def keys_of(method: Method) -> dict[str, str]:
    """Every key a run of the method takes, with what it means."""
    return {
        name: field.description or ""
        for model in _models(method)
        for name, field in model.model_fields.items()
    }


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """``key=value`` words of a command line.

    Raises:
        ConfigError: every word that is not a pair, and every key given twice.
    """
    faults: list[Fault] = []
    values: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        key = key.strip()
        if not sign or not re.fullmatch(r"[a-z][a-z_]*", key):
            faults.append(
                Fault(repr(pair), "is not key=value", "write for example epochs=20, in small letters")
            )
        elif key in values:
            faults.append(Fault(key, "given twice", "leave one out"))
        else:
            values[key] = value.strip()
    if faults:
        raise ConfigError(faults, about="the options")
    return values


def read_config_file(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; also of a run's own ``config.json``, so that a run can be repeated.

    Raises:
        ConfigError: it cannot be read, or is not a flat mapping.
    """
    try:
        content = read_yaml(path)
    except (OSError, YamlError) as error:
        raise ConfigError(
            Fault(str(path), str(error), "check the file"), about="the configuration file"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        raise ConfigError(
            Fault(str(path), "is not a mapping of keys to values", "write lines like epochs: 20"),
            about="the configuration file",
        )
    if set(content) == {"format", "settings"} and isinstance(content["settings"], Mapping):
        try:
            return values_of(content["settings"])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                Fault(
                    str(path),
                    "was edited: a setting has no value or origin",
                    "restore it, or write key: value",
                ),
                about="the configuration file",
            ) from error
    return dict(content)


def values_of(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values of settings as :meth:`Settings.stored` wrote them, to be resolved again.

    What nobody asked for is left out where naming the default would contradict something else: a length
    where words were given, and for whom a head's settings are chosen.
    """
    words = {"init_words", "class_init_words"} & {key for key in stored if stored[key]["value"]}
    return {
        key: entry["value"]
        for key, entry in stored.items()
        if not (
            entry["origin"] == "default"
            and (key == "head_tune" or (words and key.endswith("context_length")))
        )
    }


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe's settings."""
    file = resources.files("softcpt") / "presets" / f"{name}.yaml"
    with resources.as_file(file) as path:
        content = read_yaml(path)
    settings: dict[str, Any] = content["settings"]
    return settings


def resolve(
    given: Mapping[str, Any], *, file: Path | None = None, given_by: str = "command line"
) -> Settings:
    """All settings of a run, each with its origin.

    Args:
        given: keys and values that were asked for; text is read as a value of the key's type.
        file: a configuration file.
        given_by: what ``given`` is called as an origin.

    Raises:
        ConfigError: every unknown key, every key the method has no use for, every value that cannot be.
    """
    from_file = read_config_file(file) if file else {}
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file:
        layers.append((f"file {file}", from_file))
    layers.append((given_by, given))

    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        merged |= layer
        origins |= dict.fromkeys(layer, origin)
    recipe = str(merged.get("recipe", RunConfig.model_fields["recipe"].default))
    name = str(merged.get("method", RunConfig.model_fields["method"].default))
    try:
        method = get_method(name)
    except ConfigError as error:
        raise ConfigError([*error.faults, *_faults_of_any_method(merged)], about="the options") from error
    keys = keys_of(method)

    faults = _recipe_faults(recipe, method, merged)
    faults += [_key_fault(key, method) for key in merged if key not in keys]
    from_recipe = {} if faults else read_recipe(recipe)
    for key, value in from_recipe.items():
        if key in keys and key not in merged:
            merged[key], origins[key] = value, f"recipe {recipe}"
    for key, value in method.defaults.items():
        if key not in merged:
            merged[key], origins[key] = value, f"method {name}"
    published_steps = merged.get("repeated_steps") == "published"
    if published_steps:
        if method.published_steps is None:
            what = f"no code of {method.label} was published that trains all tasks in one run"
            faults.append(Fault("repeated_steps", what, "give a number"))
        merged["repeated_steps"] = method.published_steps or 1

    read = _Reader(merged, keys)
    settings = Settings(
        run=read.model(RunConfig),
        data=read.model(DataConfig),
        encoder=read.model(EncoderConfig),
        train=read.model(TrainConfig) if method.trains else None,
        own=read.model(method.config),
        origins={key: origins.get(key, "default") for key in keys},
    )
    named = {fault.where for fault in faults}
    faults += [fault for fault in read.faults if fault.where not in named]
    faults = faults or [*_idle_faults(settings, from_recipe), *_unpublished_faults(settings)]
    if faults:
        raise ConfigError(faults, about="the options")
    if settings.train is None:
        return settings
    computed: dict[str, Any] = {}
    if published_steps and getattr(settings.own, "freeze_class_context", False):
        # A frozen class context is not registered with the optimizer: one name, and one step, fewer.
        computed["repeated_steps"] = settings.train.repeated_steps - 1
    if origins.get("views") == f"recipe {recipe}":
        computed["views"] = settings.train.n_epochs(settings.run.shots)
    return replace(settings, train=settings.train.model_copy(update=computed))


class _Reader:
    """Checks each model's own keys; faults are kept, so that all come out at once."""

    def __init__(self, merged: Mapping[str, Any], keys: Mapping[str, str]) -> None:
        self.merged, self.keys = merged, keys
        self.faults: list[Fault] = []

    def model(self, kind: type[Model]) -> Model:
        own = {key: self.merged[key] for key in kind.model_fields if key in self.merged}
        try:
            return kind.model_validate(own)
        except ValidationError as error:
            found = [_value_fault(entry, own, self.keys) for entry in error.errors(include_url=False)]
            # A value that may be of several kinds fails once for each; one line a key is enough.
            self.faults += {fault.where: fault for fault in reversed(found)}.values()
            return kind.model_construct()  # never used: the faults are raised


def _faults_of_any_method(merged: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with options whatever the method: keys that none has, values that all would refuse."""
    kinds: tuple[type[BaseModel], ...] = (*_SHARED, TrainConfig)
    shared = {key: field.description or "" for kind in kinds for key, field in kind.model_fields.items()}
    known = {key for method in list_methods() for key in keys_of(method)}
    read = _Reader({key: value for key, value in merged.items() if key != "method"}, shared)
    for kind in kinds:
        read.model(kind)
    strangers = [key for key in merged if key not in known]
    unknown = [Fault(key, "there is no such option", nearest(key, known)) for key in strangers]
    return unknown + read.faults


def _idle_faults(settings: Settings, from_recipe: Mapping[str, Any]) -> list[Fault]:
    """Values that were asked for and would change nothing beside the others."""
    method = settings.method
    faults: list[Fault] = []
    train, own = settings.train, settings.own
    if train is not None and method.separate:
        why = f"{method.key} trains each task on its own"
        joint = f"{method.key}-joint" if _has_joint(method) else ""
        fix = f"leave it out, or use {joint}" if joint else "leave it out"
        idle = [key for key in ("balance", "loss_weights") if getattr(train, key) != "none"]
        idle += ["task_power"] if train.task_power is not None else []
        idle += ["weighting"] if getattr(own, "weighting", "none") != "none" else []
        faults += [Fault(key, f"{why}, so it would have no effect", fix) for key in idle]
        one_for_all = getattr(own, "head", "none") != "none" and getattr(own, "head_tune", "") == "suite"
        if one_for_all and settings.origins["head_tune"] != "default":
            what = f"{why}, so a head's settings are chosen for each: one for the suite cannot be"
            fix = "write task"
            faults.append(Fault("head_tune", what, f"{fix}, or use {joint}" if joint else fix))
    if train is not None and train.joint_steps and not method.separate:
        why = f"{method.key} trains all tasks in one run, so it would have no effect"
        faults.append(Fault("joint_steps", why, "leave it out"))
    if train is not None and train.balance == "tasks" and train.task_power is not None:
        faults.append(
            Fault("task_power", "with balance=tasks it would have no effect", "leave one of them out")
        )
    pairs: list[tuple[BaseModel, str, tuple[str, ...]]] = []
    if train is not None:
        pairs.append((train, "warmup_epochs", ("warmup_lr",)))
    values = own.model_dump()
    if not values.get("init_words"):
        pairs.append((own, "task_context_length", ("task_position", "freeze_task_context")))
    if not values.get("class_init_words"):
        pairs.append((own, "class_context_length", ("class_position", "freeze_class_context")))
    pairs.append((own, "class_sampling", ("class_sampling_offset",)))
    encoder = settings.encoder
    if encoder.text_memory_gb != EncoderConfig().text_memory_gb:
        if not method.trains:
            did = "learns nothing through the text encoder" if method.fits else "trains nothing"
            why = f"{method.key} {did}, so it would have no effect"
            faults.append(Fault("text_memory_gb", why, "leave it out"))
        elif encoder.text_encoder == "plain":
            why = "with text_encoder=plain it would have no effect"
            faults.append(Fault("text_memory_gb", why, "leave one of them out"))
    for model, switch, keys in pairs:
        fields = type(model).model_fields
        if switch not in fields or getattr(model, switch) != 0:
            continue
        for key in keys:
            if key in fields and getattr(model, key) not in (fields[key].default, from_recipe.get(key)):
                faults.append(Fault(key, f"with {switch}=0 it would have no effect", "leave one of them out"))
    return faults


UNPUBLISHED = (
    "text_pull",
    "logit_pull",
    "weighting",
    "init_scale",
    "freeze_task_context",
    "mean_context",
    "head",
)
"""Options of prompt methods that its recipe refuses."""


def _unpublished_faults(settings: Settings) -> list[Fault]:
    """What the published code cannot do, or does in a way of its own that is not offered."""
    if settings.run.recipe != "published" or settings.train is None:
        return []
    faults = [
        Fault(key, "the published code has nothing of the kind", "leave it out, or use recipe paper")
        for key in ("balance", "loss_weights")
        if getattr(settings.train, key) != "none"
    ]
    values = settings.own.model_dump()
    fields = type(settings.own).model_fields
    faults += [
        Fault(key, "the published code has nothing of the kind", "leave it out, or use recipe paper")
        for key in UNPUBLISHED
        if key in values and values[key] != fields[key].default
    ]
    specific = settings.run.method.endswith(("ts", "-cs-joint"))
    per_class = settings.run.method.startswith("softcpt-cs")
    for key, is_specific in (("init_words", specific), ("class_init_words", per_class)):
        if values.get(key) and is_specific:
            why = "with words the published code silently makes specific contexts one shared context"
            faults.append(Fault(key, why, "leave it out, or use recipe paper"))
    return faults


def _recipe_faults(recipe: str, method: Method, merged: Mapping[str, Any]) -> list[Fault]:
    known = get_args(Recipe)
    if recipe not in known:
        return [Fault("recipe", f"there is no recipe {recipe!r}", nearest(recipe, known))]
    if recipe == "published" and method.published_steps is None:
        if not method.uses_images:
            why = f"{method.key} trains nothing, so there are no published steps to repeat"
        elif not method.trains:
            why = f"{method.key} takes none of the published code's training steps"
        elif _has_joint(method):
            why = f"the published code trains all tasks in one run; {method.key} trains each on its own"
        else:
            why = f"the published code of SoftCPT, which the recipe follows, has no {method.label}"
        joint = f"use {method.key}-joint, or recipe paper" if _has_joint(method) else "use recipe paper"
        return [Fault("recipe", why, joint)]
    if recipe == "published" and merged.get("meta") in ("lowrank", "mlp"):
        what = f"the published code has no meta network {merged['meta']}"
        return [Fault("recipe", what, "use recipe paper")]
    return []


def _has_joint(method: Method) -> bool:
    return any(other.key == f"{method.key}-joint" for other in list_methods())


def _key_fault(key: str, method: Method) -> Fault:
    if method.uses_images and not method.trains and key in TrainConfig.model_fields:
        why = f"{method.key} is fitted in a way of its own, so it would have no effect"
        return Fault(key, why, "leave it out")
    if not method.uses_images and key in TrainConfig.model_fields:
        return Fault(key, f"{method.key} trains nothing, so it would have no effect", "leave it out")
    others = [m.key for m in list_methods() if key in m.config.model_fields]
    if others:
        return Fault(
            key,
            f"{method.key} has no such option, it would have no effect",
            f"it belongs to {', '.join(others)}",
        )
    return Fault(key, "there is no such option", nearest(key, keys_of(method)))


def _value_fault(entry: Mapping[str, Any], own: Mapping[str, Any], keys: Mapping[str, str]) -> Fault:
    place = [str(part) for part in entry["loc"]]
    message = str(entry["msg"]).removeprefix("Value error, ")
    if not place:  # a rule between several keys of the method
        return Fault(", ".join(key for key in own if key in message) or "options", message, "")
    key = place[0]
    return Fault(key, f"{own.get(key)!r}: {message[0].lower()}{message[1:]}", keys.get(key, ""))
