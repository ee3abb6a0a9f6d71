"""The text tower's frozen weights, folded: what prompt tuning computes again and again, made smaller once.

Exact rearrangements of a pre-norm block, for inputs xhat (normalised, without the norm's affine part):

    q k v     the first norm's gain and shift go into the projection; 1/sqrt(head size) into q's rows
    k's bias  adds the same to all scores of a query, and the softmax does not see it: left out
    v's bias  passes the attention unchanged, since probabilities sum to one: goes into the output's bias
    MLP       the second norm's gain and shift go into its first matrix; layer scale into the second ones
    QuickGELU x sigmoid(1.702 x) = silu(1.702 x) / 1.702: the factors go into the matrices around it
    features  the last norm's gain and shift go into the text projection

Letters: d width, H heads, e = d / H, F the MLP's width, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softcpt.clip.text import TextTower

Activation = Literal["silu", "gelu", "gelu_tanh"]

_QUICK = 1.702
_PARTS = {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}


@dataclass(frozen=True)
class FoldedLayer:
    """One block.

    Attributes:
        w_qkv: [3d, d].
        b_q: [d].
        w_out: [d, d].
        b_out: [d], in the dtype of the residual stream, as ``b_down``.
        w_up: [F, d].
        b_up: [F].
        w_down: [d, F].
        b_down: [d].
        eps_1: of the first norm.
        eps_2: of the second norm.
    """

    w_qkv: Tensor
    b_q: Tensor
    w_out: Tensor
    b_out: Tensor
    w_up: Tensor
    b_up: Tensor
    w_down: Tensor
    b_down: Tensor
    eps_1: float
    eps_2: float


@dataclass(frozen=True)
class FoldedTower:
    """All blocks, and the features' projection.

    Attributes:
        layers: in order.
        embedding: [vocabulary, d], the tower's own.
        positions: [context_length, d].
        w_features: [D, d].
        b_features: [D].
        eps_features: of the last norm.
        heads: H.
        activation: between the MLP's matrices.
        wide: dtype of the residual stream, the norms' statistics and the softmax: fp32 or fp64.
        narrow: dtype of the products: ``wide``, or what autocast asks for.
    """

    layers: tuple[FoldedLayer, ...]
    embedding: Tensor
    positions: Tensor
    w_features: Tensor
    b_features: Tensor
    eps_features: float
    heads: int
    activation: Activation
    wide: torch.dtype
    narrow: torch.dtype

    @property
    def width(self) -> int:
        """The width, d."""
        return int(self.w_features.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.w_features.device

    def activate(self, u: Tensor, out: Tensor) -> Tensor:
        """The MLP's activation of ``u``, written to ``out``."""
        if self.activation == "silu":
            torch.ops.aten.silu.out(u, out=out)
        else:
            torch.ops.aten.gelu.out(u, approximate=self._gelu, out=out)
        return out

    def activate_backward(self, grad: Tensor, u: Tensor) -> Tensor:
        """The gradient through the activation, in place of ``grad``."""
        if self.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(grad, u, grad_input=grad)
        else:
            torch.ops.aten.gelu_backward.grad_input(grad, u, approximate=self._gelu, grad_input=grad)
        return grad

    @property
    def _gelu(self) -> str:
        return "tanh" if self.activation == "gelu_tanh" else "none"


def why_not_folded(tower: TextTower) -> str | None:
    """Why a tower's blocks cannot be folded, or None: then the plain encoder is the only one."""
    blocks: Any = getattr(tower.transformer, "resblocks", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        return f"{type(tower.transformer).__name__} is not a stack of residual blocks"
    if not _is_norm(tower.ln_final):
        return f"its last norm is {type(tower.ln_final).__name__}"
    for i, block in enumerate(blocks):
        reason = _why_not(block)
        if reason is not None:
            return f"block {i}: {reason}"
    heads = {block.get_submodule("attn").num_heads for block in blocks}
    if len({_activation(block) for block in blocks}) > 1 or len(heads) > 1:
        return "its blocks differ in kind"
    return None


def _why_not(block: nn.Module) -> str | None:
    parts = dict(block.named_children())
    if set(parts) != _PARTS:
        return f"{type(block).__name__} has parts of its own: {', '.join(sorted(set(parts) ^ _PARTS))}"
    attention, mlp = parts["attn"], dict(parts["mlp"].named_children())
    if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
        return f"its attention is {type(attention).__name__}"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "its attention has keys of its own"
    for name in ("ln_1", "ln_2"):
        if not _is_norm(parts[name]):
            return f"{name} is {type(parts[name]).__name__}"
    for name in ("ls_1", "ls_2"):
        if not isinstance(parts[name], nn.Identity) and not isinstance(
            getattr(parts[name], "gamma", None), Tensor
        ):
            return f"{name} is {type(parts[name]).__name__}"
    if list(mlp) != ["c_fc", "gelu", "c_proj"] or not all(
        isinstance(mlp[name], nn.Linear) for name in ("c_fc", "c_proj")
    ):
        return f"its MLP has the parts {', '.join(mlp)}"
    if _activation(block) is None:
        return f"its activation is {type(mlp['gelu']).__name__}"
    return None


def _is_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.LayerNorm) and module.weight is not None and len(module.normalized_shape) == 1
    )


def _activation(block: nn.Module) -> Activation | None:
    kind: Any = block.get_submodule("mlp.gelu")
    if type(kind) is nn.GELU:
        return "gelu_tanh" if kind.approximate == "tanh" else "gelu"
    # open_clip's class has no marks but its name; it is held to the formula.
    return "silu" if type(kind).__name__ == "QuickGELU" else None


@torch.no_grad()
def fold(tower: TextTower, narrow: torch.dtype | None = None) -> FoldedTower:
    """Fold a tower's weights, in fp64, and round once to the dtype of the products.

    Args:
        tower: one for which :func:`why_not_folded` has no reason.
        narrow: dtype of the products; None for the tower's own.
    """
    transformer: Any = tower.transformer
    blocks = list(transformer.resblocks)
    narrow = narrow or tower.dtype
    wide = torch.float64 if tower.dtype == torch.float64 else torch.float32
    activation = _activation(blocks[0])
    assert activation is not None
    norm: Any = tower.ln_final
    projection = (
        torch.eye(tower.width, device=tower.device) if tower.projection is None else tower.projection.T
    )
    weight, bias = _behind_norm(_exact(projection), None, norm)
    if tower.projection_bias is not None:
        bias = bias + _exact(tower.projection_bias)
    return FoldedTower(
        layers=tuple(_fold_block(block, activation, narrow, wide) for block in blocks),
        embedding=tower.token_embedding.weight.detach(),
        positions=tower.positional_embedding.detach().to(wide),
        w_features=weight.to(tower.device, narrow).contiguous(),
        b_features=bias.to(tower.device, narrow),
        eps_features=norm.eps,
        heads=int(blocks[0].attn.num_heads),
        activation=activation,
        wide=wide,
        narrow=narrow,
    )


def _fold_block(
    block: Any,  # noqa: ANN401  a residual block, held to its parts before
    activation: Activation,
    narrow: torch.dtype,
    wide: torch.dtype,
) -> FoldedLayer:
    attention, mlp = block.attn, block.mlp
    width = attention.embed_dim
    w_qkv, b_qkv = _behind_norm(_exact(attention.in_proj_weight), attention.in_proj_bias, block.ln_1)
    scale = math.sqrt(width // attention.num_heads)
    w_qkv[:width] /= scale
    w_out = _exact(attention.out_proj.weight)
    b_out = w_out @ b_qkv[2 * width :]
    if attention.out_proj.bias is not None:
        b_out = b_out + _exact(attention.out_proj.bias)
    w_up, b_up = _behind_norm(_exact(mlp.c_fc.weight), mlp.c_fc.bias, block.ln_2)
    w_down = _exact(mlp.c_proj.weight)
    b_down = torch.zeros_like(b_out) if mlp.c_proj.bias is None else _exact(mlp.c_proj.bias)
    if activation == "silu":
        w_up, b_up, w_down = w_up * _QUICK, b_up * _QUICK, w_down / _QUICK
    gain_1, gain_2 = (_gain(scale_of, b_out) for scale_of in (block.ls_1, block.ls_2))
    device = attention.in_proj_weight.device

    def rounded(tensor: Tensor, dtype: torch.dtype = narrow) -> Tensor:
        return tensor.to(device, dtype).contiguous()

    return FoldedLayer(
        w_qkv=rounded(w_qkv),
        b_q=rounded(b_qkv[:width] / scale),
        w_out=rounded(gain_1[:, None] * w_out),
        b_out=rounded(gain_1 * b_out, wide),
        w_up=rounded(w_up),
        b_up=rounded(b_up),
        w_down=rounded(gain_2[:, None] * w_down),
        b_down=rounded(gain_2 * b_down, wide),
        eps_1=block.ln_1.eps,
        eps_2=block.ln_2.eps,
    )


def _behind_norm(weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """W (g x + s) + b = (W g) x + (W s + b), in fp64."""
    shift = torch.zeros_like(weight[:, 0]) if bias is None else _exact(bias)
    if norm.bias is not None:
        shift = shift + weight @ _exact(norm.bias)
    return weight * _exact(norm.weight), shift


def _gain(layer_scale: nn.Module, like: Tensor) -> Tensor:
    gamma = getattr(layer_scale, "gamma", None)
    return torch.ones_like(like) if gamma is None else _exact(gamma)


def _exact(tensor: Tensor) -> Tensor:
    # Apple's GPUs have no fp64.
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device, torch.float64)


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm without affine part: xhat, mean and reciprocal deviation."""
    normed: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(x, (x.shape[1],), None, None, eps)
    return normed


def normalise_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The gradient through :func:`normalise`."""
    back: Tensor = torch.ops.aten.native_layer_norm_backward(
        grad, x, (x.shape[1],), mean, rstd, None, None, [True, False, False]
    )[0]
    return back
