"""PLOT: several contexts per task, matched with an image's regions by optimal transport.

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023,
arXiv:2210.01253. The paper's text was not available; this follows its published code (CHENGY12/PLOT).

    x_1..x_m   features of the image's regions        unit vectors (a ResNet's attention pool, every token)
    g_1..g_N   class prompts with N contexts          unit vectors
    S_ij       = <x_i, g_j>
    P          = plan of transport for the cost 1 - S, equal weights (:mod:`softcpt.methods.transport`)
    logit      = scale * sum of P_ij S_ij             P is a constant to the gradient

Each task in a run of its own. Published: RN50 (m = 49), N = 4, batches of 128; on ImageNet alone the cosine
of the image's own feature with the mean of the prompts is added (``add_global``). A ViT's patches are not in
the joint space, and the authors give it another method; here it runs, with a note.

Letters: B images, t = 1 + r tokens (the image, then its r regions), k columns, N contexts, D embedding.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from softcpt.clip.tokens import Position
from softcpt.methods.base import Method, MethodConfig, Problem, PromptClassifier, Scorer, Streams
from softcpt.methods.loss import cosine_logits
from softcpt.methods.prompts import class_prompts, encode_prompts, random_context
from softcpt.methods.transport import transport_plan

NUMBERS_AT_ONCE = 1 << 22
"""Scores are computed for so many images that their similarities are about this many numbers."""


class PLOTConfig(MethodConfig):
    """Options of PLOT."""

    context_length: int = Field(16, ge=1, description="context tokens of a class prompt")
    position: Position = Field("end", description="where the name stands")
    init_scale: float = Field(1.0, gt=0, description="factor of the class prompts' random start")
    prompts: int = Field(4, ge=1, description="contexts, and so prompts, of each class")
    epsilon: float = Field(0.1, gt=0, description="weight of the plan's entropy")
    tolerance: float = Field(0.01, gt=0, description="the plan is found when its scales move less than this")
    iterations: int = Field(100, ge=1, description="most of them for a plan")
    add_global: bool = Field(
        False, description="add the image's own score to its regions'; published for ImageNet"
    )


class PLOT(PromptClassifier):
    """Class prompts with several learned contexts, compared with regions."""

    def __init__(self, problem: Problem, config: PLOTConfig, streams: Streams) -> None:
        super().__init__(problem)
        shape = (config.prompts, config.context_length, problem.text.width)
        self.context = nn.Parameter(random_context(problem, shape, streams("context"), config.init_scale))
        self.prompts = class_prompts(problem, config.context_length, config.position)
        self.config = config

    def prompt_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k N D"]:
        """Text features of each class in each context, not normalised: all K classes, or some columns."""
        device = self.context.device
        every = torch.arange(len(self.prompts), device=device) if selected is None else selected
        n = len(self.context)
        owner = torch.arange(n, device=device).repeat_interleave(len(every))
        features = encode_prompts(self.problem, self.prompts, self.context, owner, every.repeat(n))
        return features.reshape(n, len(every), -1).transpose(0, 1)

    def class_features(self, selected: Int[Tensor, " k"] | None = None) -> Float[Tensor, "k D"]:
        """The mean of a class's prompts, for images without regions."""
        return self.prompt_features(selected).mean(1)

    def logits(self, features: Float[Tensor, "B t D"]) -> Float[Tensor, "B K"]:
        """Scaled transport scores of all classes."""
        return self.transport_logits(features, self.prompt_features())

    def logits_among(
        self, selected: Int[Tensor, " k"], features: Float[Tensor, "B t D"]
    ) -> Float[Tensor, "B k"]:
        """Those of the selected columns."""
        return self.transport_logits(features, self.prompt_features(selected))

    def transport_logits(
        self, features: Float[Tensor, "B t D"], texts: Float[Tensor, "k N D"]
    ) -> Float[Tensor, "B k"]:
        """Scaled similarity of regions and prompts under the best plan."""
        scale = self.problem.logit_scale
        similarity = self.similarity(features, texts)
        scores = scale * (self.plan(similarity) * similarity).sum((-2, -1))
        if self.config.add_global:
            scores = scores + cosine_logits(features[:, 0], texts.mean(1), scale)
        return scores

    def similarity(
        self, features: Float[Tensor, "B t D"], texts: Float[Tensor, "k N D"]
    ) -> Float[Tensor, "B k r N"]:
        """Cosines of every region with every prompt."""
        regions = features[:, 1:].to(self.context)
        regions = regions / regions.norm(dim=2, keepdim=True)
        prompts = texts.to(self.context)
        prompts = prompts / prompts.norm(dim=2, keepdim=True)
        with torch.autocast(regions.device.type, enabled=False):
            return torch.einsum("brd,knd->bkrn", regions, prompts)

    def plan(self, similarity: Float[Tensor, "B k r N"]) -> Float[Tensor, "B k r N"]:
        """How much of each region goes to each prompt."""
        return transport_plan(
            similarity,
            epsilon=self.config.epsilon,
            tolerance=self.config.tolerance,
            most_iterations=self.config.iterations,
        )

    def known_features(self) -> Float[Tensor, "K D"]:
        """The mean of each class's prompts."""
        return self._known_texts().mean(1)

    def _texts(self) -> Tensor:
        return self.prompt_features()

    def scorer(self) -> Scorer:
        """Transport scores over one task's classes."""
        texts = self._known_texts()
        problem = self.problem

        def score(features: Tensor, task: int) -> Tensor:
            own = texts[problem.columns(task)]
            of_image = own.shape[0] * own.shape[1] * (features.shape[1] - 1)
            pieces = torch.split(features.to(texts), max(1, NUMBERS_AT_ONCE // of_image))
            with torch.no_grad():
                return torch.cat([self.transport_logits(piece, own) for piece in pieces])

        return score

    @torch.no_grad()
    def facts(self, features: Float[Tensor, "B t D"]) -> dict[str, float]:
        """How evenly plans spread: their entropy as a share of the even plan's, 1 for no choice at all."""
        texts = self._known_texts()
        entropies = []
        for image in torch.split(features, 1):
            plan = self.plan(self.similarity(image.to(texts), texts))
            entropies.append(-torch.xlogy(plan, plan).sum((-2, -1)).mean())
        even = math.log((features.shape[1] - 1) * texts.shape[1])
        return {"plan_entropy": float(torch.stack(entropies).mean()) / even} if even else {}


def _build(problem: Problem, config: PLOTConfig, streams: Streams) -> PLOT:
    return PLOT(problem, config, streams)


PLOT_OT = Method(
    key="plot",
    label="PLOT",
    summary="several learned contexts per task, matched with regions by optimal transport",
    config=PLOTConfig,
    build=_build,
    separate=True,
    image_features="tokens",
)
