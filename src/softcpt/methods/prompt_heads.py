"""Learned prompts, then a head on cached features whose text they are. Ours.

    tip      s f T^t + alpha exp(-beta (1 - f K^t)) Y             T: class features of the learned prompts
    logistic gamma s f T^t + x W^t + b                            gamma 1 or 0 (logistic.py)
    ridge    omega log p_prompts + (1 - omega) log p_ridge         ridge towards T, closed form
    lp++     omega log p_prompts + (1 - omega) log p_lp++          LP++ whose text is T

Tip-Adapter is of arXiv:2207.09519, LP++ of arXiv:2404.02285.

The prompts were trained on the very images that the head is fitted to: fits to these look better than they
are, so everything is chosen on val, never by leave-one-out. The prompts alone are always among the choices
(omega=1, alpha=0, C=0); what they and the head reach alone is recorded. The same heads on hand-written
text are methods of their own: what they reach without any learned prompt is the comparison that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softcpt.methods.base import Classifier, Problem, PromptClassifier, Scorer, Streams, Support
from softcpt.methods.heads import Head, HeadClassifier, Setting, State, TaskData, TaskText, Trials, pooled
from softcpt.methods.logistic import Logistic
from softcpt.methods.loss import unit
from softcpt.methods.lp_plus_plus import LpPlusPlus, LpPlusPlusConfig
from softcpt.methods.ridge import Ridge
from softcpt.methods.tip_adapter import TipAdapter, TipAdapterConfig, votes

if TYPE_CHECKING:
    from softcpt.methods.prompts import PromptConfig

OMEGAS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Share of the prompts; they alone come first."""


class Blend(Head):
    """A head beside the prompts that its text comes from, each by its log-probabilities."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.kept = head.kept | {"omega"}  # type: ignore[misc]  # an instance's own

    def shapes(self, n_images: int, n_classes: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The head's, and omega."""
        return {**self.head.shapes(n_images, n_classes, dim), "omega": ()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """The head's."""
        return self.head.dtypes()

    def grid(self) -> Sequence[Setting]:
        """All shares; for each, the head's settings in its order."""
        return [{"omega": omega, **setting} for omega in OMEGAS for setting in self.head.grid()]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """The head once under each of its own settings, then every share of it on val."""
        own = [{k: v for k, v in setting.items() if k != "omega"} for setting in grid]
        first = {tuple(setting.items()): g for g, setting in reversed(list(enumerate(own)))}
        place = {key: i for i, key in enumerate(first)}
        trials = self.head.explore(data, [own[g] for g in first.values()])
        of = [place[tuple(setting.items())] for setting in own]
        states = [trials.state(i) for i in range(len(first))]
        prompts = (data.scale * data.val @ data.text.unit.T).log_softmax(1)
        heads = [self.head.logits(s, data.val, data.text, data.scale).log_softmax(1) for s in states]
        mixed = [w["omega"] * prompts + (1 - w["omega"]) * heads[i] for w, i in zip(grid, of, strict=True)]
        right = torch.stack([data.val_accuracy(logits) for logits in mixed])
        likely = torch.stack([_likelihood(logits, data.val_labels) for logits in mixed])

        def state(g: int) -> State:
            return {**states[of[g]], "omega": torch.tensor(grid[g]["omega"]).to(prompts)}

        def record(g: int) -> dict[str, Any]:
            alone = {
                "prompts_val_accuracy": float(data.val_accuracy(prompts)),
                "head_val_accuracy": float(data.val_accuracy(heads[of[g]])),
            }
            return {**trials.record(of[g]), **alone}

        return Trials(torch.stack([right, likely.to(right)], 1), state, record, trials.trainings)

    def logits(
        self, state: Mapping[str, Tensor], features: Float[Tensor, "B D"], text: TaskText, scale: float
    ) -> Float[Tensor, "B C"]:
        """Omega log p_prompts + (1 - omega) log p_head."""
        prompts = (scale * unit(features) @ text.unit.T).log_softmax(1)
        head = self.head.logits(state, features, text, scale).log_softmax(1)
        omega = state["omega"]
        # A share of exactly 0 or 1 must not turn a probability of 0 into no number.
        return prompts if omega == 1 else head if omega == 0 else omega * prompts + (1 - omega) * head


class VotesBesidePrompts(TipAdapter):
    """Tip-Adapter's votes on top of prompts, or none."""

    def grid(self) -> Sequence[Setting]:
        """Tip-Adapter's, and the prompts alone."""
        published, *rest = super().grid()
        return [published, {**published, "alpha": 0.0}, *rest]

    def explore(self, data: TaskData, grid: Sequence[Setting]) -> Trials:
        """Every pair on val, and each part alone."""
        trials = super().explore(data, grid)
        keys = pooled(data.views(self.config.views))

        def record(g: int) -> dict[str, Any]:
            guess = data.scale * data.val @ data.text.unit.T
            known = votes(data.val, keys, data.one_hot, grid[g]["beta"])
            return {
                **trials.record(g),
                "prompts_val_accuracy": float(data.val_accuracy(guess)),
                "head_val_accuracy": float(data.val_accuracy(known)),
            }

        return replace(trials, record=record)


def _likelihood(log_probabilities: Float[Tensor, "m C"], labels: Int[Tensor, " m"]) -> Float[Tensor, ""]:
    if not len(labels):
        return log_probabilities.new_zeros(())
    return log_probabilities.log_softmax(1)[torch.arange(len(labels)), labels].mean()


class PromptsWithHead(HeadClassifier):
    """Prompts that the loop trains, then a head for each task on the text they make."""

    def __init__(self, prompts: PromptClassifier, head: Head, config: PromptConfig) -> None:
        super().__init__(prompts.problem, head, tune=config.head_tune)
        self.prompts = prompts
        self._fitted = False

    def text(self, task: int) -> Float[Tensor, "1 C D"]:
        """Class features of the learned prompts."""
        return self.prompts.known_features()[None, self.problem.columns(task)]

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """The prompts'."""
        return self.prompts.loss(features, columns, rng=rng, weights=weights)

    def allocate(self, n_images: Sequence[int]) -> None:
        """Make room for the heads; from then on they score."""
        super().allocate(n_images)
        self._fitted = True

    def fit(self, support: Sequence[Support], streams: Streams) -> None:
        """Fit the heads to the trained prompts."""
        super().fit(support, streams)
        self._fitted = True

    def scorer(self) -> Scorer:
        """The heads, or the prompts alone while there are none."""
        return super().scorer() if self._fitted else self.prompts.scorer()

    def for_tasks(self, problem: Problem) -> Classifier:
        """The prompts alone: a head belongs to the tasks it was fitted to."""
        return self.prompts.for_tasks(problem)

    def step_factors(self) -> Float[Tensor, " T"] | None:
        """The prompts'."""
        return self.prompts.step_factors()

    def regenerated(self) -> dict[str, str]:
        """The prompts'."""
        return self.prompts.regenerated()

    def report(self) -> dict[str, Any]:
        """The prompts'."""
        return self.prompts.report()


_HEADS: dict[str, Callable[[int], Head]] = {
    "tip": lambda views: VotesBesidePrompts(TipAdapterConfig(views=views)),
    "ridge": lambda views: Blend(Ridge(views, "val")),
    "lp++": lambda _: Blend(LpPlusPlus(LpPlusPlusConfig())),
    "logistic": lambda _: Logistic(),
}

Build = Callable[[Problem, Any, Streams], PromptClassifier]


def with_head(build: Build) -> Callable[[Problem, Any, Streams], Classifier]:
    """A prompt method's builder that heeds ``head``."""

    def made(problem: Problem, config: PromptConfig, streams: Streams) -> Classifier:
        prompts = build(problem, config, streams)
        if config.head == "none":
            return prompts
        return PromptsWithHead(prompts, _HEADS[config.head](config.head_views), config)

    return made
