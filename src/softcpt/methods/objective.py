"""What training makes small beside, or in place of, the plain cross-entropy.

    pull to hand-written prompts   + text_pull  (1/T) sum_t (1/C_t) sum_c (1 - cos(w_tc, w0_tc))
                                   + logit_pull mean_i CE(softmax(z0_i), softmax(z_i))
    uncertainty weights            (1/p) sum_t (e^-s_t L_t + s_t / 2), s learned from 0      arXiv:1705.07115
    PCGrad, GradNorm               see conflicts.py

w0, z0: class features and logits of the tasks' templates; L_t: loss of the task's images in the batch;
p: tasks that have any. A pull of 0 and no weighting leave the plain loss, bit for bit: there is no objective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softcpt.methods.base import Problem
from softcpt.methods.conflicts import CosineMeter, GradNorm, pcgrad_weights
from softcpt.methods.loss import Encoded, cosine_logits, cross_entropy_terms
from softcpt.methods.zero_shot import ZeroShot

if TYPE_CHECKING:
    from softcpt.methods.base import PromptClassifier
    from softcpt.methods.prompts import PromptConfig


class Objective(nn.Module):
    """Pulls and task weighting of one training."""

    def __init__(self, problem: Problem, config: PromptConfig) -> None:
        super().__init__()
        self._problem = (problem,)
        self.text_pull, self.logit_pull = config.text_pull, config.logit_pull
        self.weighting = config.weighting
        n_tasks = len(problem.tasks)
        self._meter, self._norm = CosineMeter(n_tasks), GradNorm(n_tasks)
        self._written: tuple[Tensor, ...] = ()
        if self.weighting == "uncertainty":
            self.log_variance = nn.Parameter(
                torch.zeros(n_tasks, device=problem.text.device, dtype=problem.dtype)
            )

    @property
    def wants_all_classes(self) -> bool:
        """Whether classes of tasks without images in a batch are to be encoded too."""
        return self.text_pull > 0

    def forward(self, classifier: PromptClassifier, batch: Encoded) -> Float[Tensor, ""]:
        """The loss of one batch."""
        problem = self._problem[0]
        of_class = problem.task_of_class if batch.selected is None else problem.task_of_class[batch.selected]
        logits = cosine_logits(batch.features, batch.class_features, problem.logit_scale)
        terms = cross_entropy_terms(logits, batch.columns, of_class)
        if self.logit_pull:
            guess = cosine_logits(batch.features, self._reference(batch.selected), problem.logit_scale)
            terms = terms + self.logit_pull * _cross_entropies(guess, logits, of_class, batch.columns)
        if batch.weights is not None:
            terms = terms * batch.weights
        of_image = of_class[batch.columns]
        n_tasks = len(problem.tasks)
        sums = terms.new_zeros(n_tasks).index_add(0, of_image, terms)
        pulls = self._pulls(batch, of_class) if self.text_pull else terms.new_zeros(n_tasks)
        counts = torch.bincount(of_image, minlength=n_tasks)
        tasks = torch.nonzero(counts).flatten()
        if self.weighting in ("uncertainty", "gradnorm"):
            own = sums[tasks] / counts[tasks] / len(tasks)
        else:
            own = sums[tasks] / len(of_image)
        return self._weighted(classifier, tasks, own, batch.rng) + pulls.sum()

    def _weighted(
        self,
        classifier: PromptClassifier,
        tasks: Int[Tensor, " p"],
        losses: Float[Tensor, " p"],
        rng: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The sum of the present tasks' losses, each with its weight."""
        if self.weighting == "none":
            return losses.sum()
        if self.weighting == "uncertainty":
            spread = self.log_variance[tasks]
            return (losses * torch.exp(-spread)).sum() + (spread / 2).mean()
        gram = classifier.task_gram(losses, tasks).detach()
        where = tasks.cpu()
        self._meter.see(where, gram)
        if self.weighting == "pcgrad":
            factors = pcgrad_weights(gram, rng)
        elif self.weighting == "gradnorm":
            factors = self._norm.weights[where].clone()
            norms = gram.diagonal().clamp_min(0).sqrt().double().cpu()
            # Each task's own mean: how many tasks a batch holds says nothing of how a task learns.
            own = losses.detach().double().cpu() * len(tasks)
            self._norm.update(where, norms, own)
        else:
            return losses.sum()
        return (losses * factors.to(losses)).sum()

    def _pulls(self, batch: Encoded, of_class: Int[Tensor, " k"]) -> Float[Tensor, " T"]:
        """Each task's share; the mean over its classes first, so that large tasks do not rule."""
        gaps = 1 - F.cosine_similarity(batch.class_features, self._reference(batch.selected), dim=1)
        n_tasks = len(self._problem[0].tasks)
        counts = torch.bincount(of_class, minlength=n_tasks).clamp_min(1)
        sums = gaps.new_zeros(n_tasks).index_add(0, of_class, gaps)
        return self.text_pull * sums / counts / n_tasks

    def _reference(self, selected: Int[Tensor, " k"] | None) -> Float[Tensor, "k D"]:
        """Class features of the templates, made once."""
        if not self._written:
            problem = self._problem[0]
            with torch.no_grad():
                self._written = (ZeroShot(problem).class_features().to(problem.dtype),)
        return self._written[0] if selected is None else self._written[0][selected]

    def report(self) -> dict[str, object]:
        """What a run's result says: gradient cosines between tasks, or weights."""
        if self.weighting == "uncertainty":
            return {"log_variance": [round(float(s), 4) for s in self.log_variance.detach()]}
        if self.weighting == "none":
            return {}
        weights = {"weights": [round(float(w), 4) for w in self._norm.weights]}
        return self._meter.report() | (weights if self.weighting == "gradnorm" else {})


def build_objective(problem: Problem, config: PromptConfig) -> Objective | None:
    """The objective that options ask for, or None for the plain loss."""
    if config.text_pull or config.logit_pull or config.weighting != "none":
        return Objective(problem, config)
    return None


def _cross_entropies(
    teacher: Float[Tensor, "B k"],
    logits: Float[Tensor, "B k"],
    of_class: Int[Tensor, " k"],
    columns: Int[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """CE(softmax(teacher), softmax(logits)) of each image, inside its own task."""
    foreign = of_class[None, :] != of_class[columns][:, None]
    wanted = teacher.masked_fill(foreign, -torch.inf).softmax(1)
    found = logits.masked_fill(foreign, -torch.inf).log_softmax(1).masked_fill(foreign, 0)
    return -(wanted * found).sum(1)
