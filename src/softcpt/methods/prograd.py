"""ProGrad: CoOp whose gradient must not point against that of staying with zero-shot.

Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865. The paper's text was not
available; this follows its published code (BeierZhu/Prompt-align).

    a = gradient of the cross-entropy
    b = gradient of tau^2 CE(softmax(zero-shot logits / tau), softmax(logits / tau))
    step along  a                                  where <a, b> >= 0
                a - strength <a, b> b / |b|^2      elsewhere

The second loss is never added; only its direction is used. A context per task, each task in a run of its own.
The context starts as the words of the task's template, turned so that the name comes last, in its last
positions; those before them are zero. The same text is the teacher's. Published: strength 1, and 0.8 for
three data sets at 8 and 16 shots; 50, 100 or 200 epochs as CoOp.

Letters: B images, k columns, T tasks, n context tokens, W text width.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from softcpt.core.errors import ConfigError, Fault
from softcpt.core.names import prompt_words
from softcpt.methods.base import Method, MethodConfig, Problem, Streams
from softcpt.methods.coop import ContextConfig, CoOp, Sharing
from softcpt.methods.loss import cosine_logits, multitask_cross_entropy
from softcpt.methods.written import reference_features


class ProGradConfig(MethodConfig):
    """Options of ProGrad."""

    context_length: int = Field(16, ge=1, description="context tokens of a class prompt")
    strength: float = Field(
        1.0, ge=0, le=1, description="share of the gradient against zero-shot that is taken out"
    )
    temperature: float = Field(1.0, gt=0, description="of the two distributions whose distance it looks at")


class ProGrad(CoOp):
    """CoOp with a context per task and an aligned gradient."""

    def __init__(self, problem: Problem, config: ProGradConfig, streams: Streams) -> None:
        super().__init__(problem, ContextConfig(context_length=config.context_length), Sharing.TASK, streams)
        self.strength, self.temperature = config.strength, config.temperature
        self.words = [words_before_name(task.template) for task in problem.tasks]
        with torch.no_grad():
            self.context.copy_(right_aligned(problem, self.words, config.context_length))

    @cached_property
    def teacher(self) -> Float[Tensor, "K D"]:
        """Unit features of the templates with the name last."""
        return reference_features(self.problem, [f"{words} {{}}." for words in self.words])

    def losses(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> tuple[Tensor, ...]:
        """The cross-entropy, and how far the predictions are from zero-shot's."""
        problem = self.problem
        selected = problem.columns_in_play(columns)
        if selected is None:
            selected = torch.arange(len(problem.task_of_class), device=columns.device)
        task_of_class = problem.task_of_class[selected]
        logits = self.logits_among(selected, features)
        taught = cosine_logits(features, self.teacher[selected], problem.logit_scale)
        loss = multitask_cross_entropy(
            logits, torch.searchsorted(selected, columns), task_of_class, weights=weights
        )
        own = task_of_class[None, :] == problem.task_of_class[columns][:, None]
        terms = distillation(logits, taught, own, self.temperature)
        return loss, (terms if weights is None else terms * weights).mean()

    def backward(self, losses: tuple[Tensor, ...]) -> None:
        """The cross-entropy's gradient, without what points against the other loss's."""
        loss, kept = losses
        learned = list(self.parameters())
        gradients = torch.autograd.grad(loss, learned, retain_graph=True)
        directions = torch.autograd.grad(kept, learned)
        for parameter, gradient, direction in zip(learned, gradients, directions, strict=True):
            parameter.grad = aligned(gradient, direction, self.strength)


def aligned(gradient: Tensor, direction: Tensor, strength: float) -> Tensor:
    """A gradient without (a share of) its part against a direction; as it is where it has none.

    Args:
        gradient: of any shape; one vector here.
        direction: of the same shape.
        strength: share that is taken out.
    """
    # Brought near 1 first: the squares of small or large fp32 numbers would be 0 or infinite.
    smallest = torch.finfo(direction.dtype).tiny
    unit = direction / direction.abs().max().clamp_min(smallest)
    unit = unit / unit.norm().clamp_min(smallest)
    along = (gradient * unit).sum()
    kept: Tensor = gradient - strength * along.clamp_max(0) * unit
    return kept


def distillation(
    logits: Float[Tensor, "B k"], taught: Float[Tensor, "B k"], own: Tensor, temperature: float
) -> Float[Tensor, " B"]:
    """tau^2 times the cross-entropy from the teacher's distribution to ours, over each image's columns."""
    others = ~own
    target = (taught / temperature).masked_fill(others, -torch.inf).softmax(1)
    ours = (logits / temperature).masked_fill(others, -torch.inf)
    # Not a product with log-probabilities of minus infinity, whose gradient is no number.
    log_p = F.log_softmax(ours, dim=1).masked_fill(others, 0.0)
    return -(temperature**2) * (target * log_p).sum(1)


def words_before_name(template: str) -> str:
    """The words of a template, turned so that the name comes last.

    Example:
        >>> words_before_name("a photo of a {}, a type of flower.")
        'a type of flower, a photo of a'
    """
    before, _, after = template.partition("{}")
    return ", ".join(words for words in (after.strip(" .,"), before.strip(" ,")) if words)


def right_aligned(problem: Problem, words: list[str], n_context: int) -> Float[Tensor, "T n W"]:
    """Contexts whose last vectors are the embeddings of words; the vectors before them are zero.

    Raises:
        ConfigError: every template that has more tokens than the context.
    """
    text = problem.text
    context = torch.zeros(len(words), n_context, text.width, device=text.device, dtype=problem.dtype)
    faults = []
    for t, phrase in enumerate(words):
        ids = problem.tokenizer.encode(prompt_words(phrase)) if phrase else []
        if len(ids) > n_context:
            what = f'the template of task "{problem.tasks[t].name}" has {len(ids)} tokens'
            faults.append(Fault("context_length", what, f"set context_length to {len(ids)} or more"))
        elif ids:
            context[t, n_context - len(ids) :] = text.embed(torch.tensor([ids], device=text.device))[0]
    if faults:
        raise ConfigError(faults, about="the options")
    return context


def _build(problem: Problem, config: ProGradConfig, streams: Streams) -> ProGrad:
    return ProGrad(problem, config, streams)


PROGRAD = Method(
    key="prograd",
    label="ProGrad",
    summary="a learned context per task, never stepping against zero-shot's predictions",
    config=ProGradConfig,
    build=_build,
    separate=True,
    tunes={"strength": ("1", "0.8", "0.5"), "lr": ("0.002", "0.006", "0.02", "0.06")},
)
