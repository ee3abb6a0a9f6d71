"""The image features that cells will ask for, made before the first of them begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from softcpt.clip.backbone import Backbone
from softcpt.compare.grid import Cell, Place
from softcpt.engine.encoder_key import encoder_key
from softcpt.engine.epoch_features import ViewOrder
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.features import CENTRE, Precision
from softcpt.engine.prepare import plan_run

Views = dict[tuple[int, Precision], set[int]]
"""Index of a record and the encoder's precision -> views."""

VIEWS_A_JOB = 512
_ASKED_AT_ONCE = 2048


def wanted_views(cells: Iterable[Cell]) -> dict[str, Views]:
    """Digest of a suite -> what its cells will look at.

    Methods that look at other things as well encode those when they run.
    """
    wanted: dict[str, Views] = {}
    seen = set()
    for cell in cells:
        settings = cell.resolved
        train = settings.train
        views = 0 if train is None else train.views
        epochs = 0 if train is None else train.n_epochs(settings.run.shots)
        plan_key = (cell.place.digest, settings.run.shots, settings.run.seed, settings.data)
        key = (*plan_key, settings.encoder.precision, views, min(views, epochs), train is None)
        if key in seen:
            continue
        seen.add(key)
        found = wanted.setdefault(cell.place.digest, {})
        samples = plan_run(cell.place.suite, settings).samples
        place = {id(record): i for i, record in enumerate(cell.place.suite.records)}
        # Tests are always in fp32, so that predictions of single images agree with them.
        for record in samples.test:
            found.setdefault((place[id(record)], "fp32"), set()).add(CENTRE)
        precision = settings.encoder.precision
        for record in samples.val:
            found.setdefault((place[id(record)], precision), set()).add(CENTRE)
        if train is None:
            kept = range(int(getattr(settings.own, "views", 0) or 0))
            for record in samples.train:
                found.setdefault((place[id(record)], precision), set()).update([CENTRE, *kept])
            continue
        order = ViewOrder(samples.train, views, settings.run.seed)
        for i, record in enumerate(samples.train):
            shown = {order.at(epoch, [i])[0] for epoch in range(min(order.period, epochs))}
            found.setdefault((place[id(record)], precision), set()).update(shown)
    return wanted


def missing_views(wanted: Views, place: Place, backbone: Backbone, cache: FeatureCache) -> Views:
    """Those of the views that the cache does not have."""
    missing: Views = {}
    for precision in sorted({precision for _, precision in wanted}):
        encoder = encoder_key(backbone, precision)
        asked = (
            ((place.suite.records[i].digest, view), i)
            for (i, own), views in wanted.items()
            if own == precision
            for view in sorted(views)
        )
        while block := list(islice(asked, _ASKED_AT_ONCE)):
            there = cache.get(encoder, [key for key, _ in block])
            for key, i in block:
                if key not in there:
                    missing.setdefault((i, precision), set()).add(key[1])
    return missing


def portions(missing: Views) -> Iterator[tuple[Precision, tuple[tuple[int, tuple[int, ...]], ...]]]:
    """Work for one job each: a precision, and records with their views."""
    for precision in sorted({precision for _, precision in missing}):
        portion: list[tuple[int, tuple[int, ...]]] = []
        n_views = 0
        for (i, own), views in sorted(missing.items()):
            if own != precision:
                continue
            portion.append((i, tuple(sorted(views))))
            n_views += len(views)
            if n_views >= VIEWS_A_JOB:
                yield precision, tuple(portion)
                portion, n_views = [], 0
        if portion:
            yield precision, tuple(portion)
