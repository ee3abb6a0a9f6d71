"""Every method by its key: our own, and those of other installed packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from softcpt.core.errors import ConfigError, Fault, nearest
from softcpt.methods import (
    basis,
    clap,
    cocoop,
    coop,
    cross_modal,
    dual,
    kgcoop,
    linear_probe,
    logistic,
    lp_plus_plus,
    mvlpt,
    plot,
    prograd,
    protonet,
    residual,
    ridge,
    softcpt,
    span,
    taskres,
    tip_adapter,
    zero_shot,
)
from softcpt.methods.base import Method
from softcpt.methods.outside import Outside, Package, find_outside

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
        ridge.RIDGE,
        logistic.LOGISTIC,
        coop.COOP_MT,
        coop.COOP_CA,
        coop.COOP_CA_JOINT,
        coop.COOP_CS,
        coop.COOP_CS_JOINT,
        cocoop.COCOOP,
        prograd.PROGRAD,
        kgcoop.KGCOOP,
        plot.PLOT_OT,
        mvlpt.MVLPT_TEXT,
        softcpt.NATA,
        softcpt.NATS,
        softcpt.CATA,
        softcpt.CATS,
        softcpt.CSTA,
        softcpt.CSTS,
        softcpt.STAR,
        softcpt.NATA_SEPARATE,
        dual.DUAL,
        basis.BASIS,
        residual.RESIDUAL,
        span.SPAN,
        dual.RHO,
        dual.PLUS,
    )
}


_LENT: dict[str, Method] = {}


@cache
def _outside() -> Outside:
    """What other packages offer; imported on first use, once a process."""
    return find_outside(_METHODS)


def list_methods() -> list[Method]:
    """All methods, in the order tables show them: ours, then those of other packages."""
    return list({**_METHODS, **_outside().methods, **_LENT}.values())


def get_method(key: str) -> Method:
    """The method of that key.

    Raises:
        ConfigError: there is none, and the nearest keys are named; or the package that offers it is at fault.
    """
    for known in (_METHODS, _LENT):
        if key in known:
            return known[key]
    outside = _outside()
    if key in outside.methods:
        return outside.methods[key]
    near = nearest(key, [method.key for method in list_methods()])
    fault = outside.refused.get(key, Fault("method", f"there is no method {key!r}", near))
    raise ConfigError(fault, about="the options")


def is_offered(key: str) -> bool:
    """Whether there is such a method, or a package that offers one which does not work."""
    return key in _METHODS or key in _LENT or key in _outside().methods or key in _outside().refused


def package_of(key: str) -> Package | None:
    """The package that a method comes from; None for ours."""
    return None if key in _METHODS else _outside().packages.get(key)


@contextmanager
def lend(method: Method) -> Iterator[None]:
    """Know a method by its key while the block runs, as if a package offered it.

    Raises:
        ConfigError: softcpt has another method of that key.
    """
    if _METHODS.get(method.key, method) is not method:
        fault = Fault("method", f"softcpt has a method {method.key!r}", "give it another key")
        raise ConfigError(fault, about="the options")
    before = _LENT.get(method.key)
    _LENT[method.key] = method
    try:
        yield
    finally:
        del _LENT[method.key]
        if before is not None:
            _LENT[method.key] = before
