"""CoCoOp: CoOp whose context is shifted by each image.

Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557. The
paper's text was not available; this follows its published code (KaiyangZhou/CoOp).

    shift(z)  = W2 relu(W1 z/|z| + b1) + b2                       hidden layer of D / 16
    context of image z, vector m = v_m + shift(z)                 the same shift for every m
    logit_j   = scale * cos(z, g([SOT, context of z, name j, ., EOT]))

Every image has its own prompts, in training and in use: B C texts for B images of a task of C classes. Each
task in a run of its own; four tokens that start as "a photo of a"; batches of one image (published: 10
epochs, a ViT-B/16). To compare lengths count images shown, not steps.

Letters: B images, C classes of a task, K classes of all, k pairs, D embedding, H hidden, n context tokens,
W text width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from softcpt.methods.base import Classifier, Method, Problem, Scorer, Streams
from softcpt.methods.coop import WordsConfig
from softcpt.methods.loss import multitask_cross_entropy
from softcpt.methods.prompts import class_prompts, context_size, encode_prompts, start_context

HIDDEN_SHARE = 16
"""The hidden layer is this many times narrower than an image feature."""

TEXTS_AT_ONCE = 2048
"""Scores are computed for so many images that they have about this many prompts: memory is bounded."""


class CoCoOpConfig(WordsConfig):
    """Options of CoCoOp."""


class CoCoOp(Classifier):
    """Class prompts with a learned context that each image shifts."""

    def __init__(self, problem: Problem, config: CoCoOpConfig, streams: Streams) -> None:
        super().__init__(problem)
        n_context = context_size(
            problem,
            config.init_words,
            config.context_length,
            key="context_length",
            words_key="init_words",
            is_set="context_length" in config.model_fields_set,
        )
        start = start_context(
            problem,
            n_context=n_context,
            words=config.init_words,
            copies=None,
            streams=streams,
            purpose="context",
            scale=config.init_scale,
        )
        self.context = nn.Parameter(start)
        text = problem.text
        hidden = max(1, text.embed_dim // HIDDEN_SHARE)
        rng = streams("shift")
        self.inner_weight, self.inner_bias = _linear(problem, text.embed_dim, hidden, rng)
        self.outer_weight, self.outer_bias = _linear(problem, hidden, text.width, rng)
        self.prompts = class_prompts(problem, n_context, config.position)

    def shifts(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B W"]:
        """What each image adds to every context vector."""
        with torch.autocast(features.device.type, enabled=False):
            images = features.to(self.context)
            images = images / images.norm(dim=1, keepdim=True)
            hidden = F.linear(images, self.inner_weight, self.inner_bias).relu()
            return F.linear(hidden, self.outer_weight, self.outer_bias)

    def contexts(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B n W"]:
        """The context of each image's prompts."""
        return self.context + self.shifts(features)[:, None]

    def pair_logits(
        self, features: Float[Tensor, "B D"], image: Int[Tensor, " k"], column: Int[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """Scaled cosines of images with classes in their own prompts.

        Args:
            features: of the images.
            image: the image of each pair.
            column: its class.
        """
        texts = encode_prompts(self.problem, self.prompts, self.contexts(features), image, column)
        return self.problem.logit_scale * torch.cosine_similarity(
            features[image].to(self.context), texts.to(self.context), eps=0.0
        )

    def loss(
        self,
        features: Float[Tensor, "B D"],
        columns: Int[Tensor, " B"],
        *,
        rng: torch.Generator,
        weights: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy inside each image's own task."""
        of_class = self.problem.task_of_class
        image, column = torch.nonzero(of_class[columns][:, None] == of_class[None, :], as_tuple=True)
        found = self.pair_logits(features, image, column)
        logits = torch.full((len(columns), len(of_class)), -torch.inf, device=found.device, dtype=found.dtype)
        logits = logits.index_put((image, column), found)
        return multitask_cross_entropy(logits, columns, of_class, weights=weights)

    def scorer(self) -> Scorer:
        """Logits over one task's classes; nothing can be computed before the images are there."""

        def score(features: Tensor, task: int) -> Tensor:
            block = self.problem.columns(task)
            own = torch.arange(block.start, block.stop, device=features.device)
            pieces = []
            for piece in torch.split(features, max(1, TEXTS_AT_ONCE // len(own))):
                image = torch.arange(len(piece), device=piece.device).repeat_interleave(len(own))
                with torch.no_grad():
                    found = self.pair_logits(piece, image, own.repeat(len(piece)))
                pieces.append(found.view(len(piece), len(own)))
            return torch.cat(pieces)

        return score


def _linear(
    problem: Problem, n_in: int, n_out: int, rng: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias at the framework's usual start, uniform within 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(n_in)

    def drawn(*shape: int) -> nn.Parameter:
        values = (2 * torch.rand(*shape, generator=rng) - 1) * bound
        return nn.Parameter(values.to(problem.text.device, problem.dtype))

    return drawn(n_out, n_in), drawn(n_out)


def _build(problem: Problem, config: CoCoOpConfig, streams: Streams) -> CoCoOp:
    return CoCoOp(problem, config, streams)


COCOOP = Method(
    key="cocoop",
    label="CoCoOp",
    summary="a learned context per task that each image shifts; slow",
    config=CoCoOpConfig,
    build=_build,
    separate=True,
    texts_per_image=True,
    defaults={"batch_size": 1},
)
