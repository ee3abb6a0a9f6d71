"""Every method by its key."""

from __future__ import annotations

from softcpt.core.errors import ConfigError, Fault, nearest
from softcpt.methods import (
    clap,
    coop,
    cross_modal,
    linear_probe,
    lp_plus_plus,
    protonet,
    softcpt,
    taskres,
    tip_adapter,
    zero_shot,
)
from softcpt.methods.base import Method

_METHODS = {
    method.key: method
    for method in (
        zero_shot.ZERO_SHOT,
        zero_shot.ZERO_SHOT_ENSEMBLE,
        protonet.PROTONET,
        linear_probe.LP_CLIP,
        tip_adapter.TIP_ADAPTER,
        tip_adapter.TIP_ADAPTER_F,
        cross_modal.CROSS_MODAL,
        lp_plus_plus.LP_PLUS_PLUS,
        clap.ZS_LP,
        clap.CLAP,
        taskres.TASKRES,
        coop.COOP_MT,
        coop.COOP_CA,
        coop.COOP_CA_JOINT,
        coop.COOP_CS,
        coop.COOP_CS_JOINT,
        softcpt.NATA,
        softcpt.NATS,
        softcpt.CATA,
        softcpt.CATS,
        softcpt.CSTA,
        softcpt.CSTS,
        softcpt.STAR,
    )
}


def list_methods() -> list[Method]:
    """All methods, in the order tables show them."""
    return list(_METHODS.values())


def get_method(key: str) -> Method:
    """The method of that key.

    Raises:
        ConfigError: there is none; the nearest keys are named.
    """
    if key not in _METHODS:
        raise ConfigError(
            Fault("method", f"there is no method {key!r}", nearest(key, _METHODS)), about="the options"
        )
    return _METHODS[key]
