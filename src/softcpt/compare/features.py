"""The image features that cells will ask for, made before the first of them begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from softcpt.clip.backbone import Backbone
from softcpt.compare.grid import Cell, Place
from softcpt.data.record import Record
from softcpt.engine.config import Settings
from softcpt.engine.encoder_key import encoder_key
from softcpt.engine.epoch_features import ViewOrder
from softcpt.engine.feature_cache import FeatureCache
from softcpt.engine.features import CENTRE, Precision
from softcpt.engine.prepare import plan_run
from softcpt.engine.rates import joint_length
from softcpt.engine.support import views_of
from softcpt.methods.base import ImageKind

Encoding = tuple[Precision, ImageKind]
"""How pictures are encoded."""

Views = dict[tuple[int, Encoding], set[int]]
"""Index of a record and how it is encoded -> views."""

VIEWS_A_JOB = 512
_ASKED_AT_ONCE: dict[ImageKind, int] = {"pooled": 2048, "tokens": 64}


def wanted_views(cells: Iterable[Cell]) -> dict[str, Views]:
    """Digest of a suite -> what its cells will look at.

    A method of another package that asks for more than its options say encodes that when it runs.
    """
    wanted: dict[str, Views] = {}
    seen = set()
    for cell in cells:
        settings = cell.resolved
        train = settings.train
        views = 0 if train is None else train.views
        epochs = 0 if train is None else train.n_epochs(settings.run.shots)
        fitted = fitted_views(settings)
        kind = settings.method.image_features
        plan_key = (cell.place.digest, settings.run.shots, settings.run.seed, settings.data)
        longer = (epochs, train.batch_size) if train is not None and train.joint_steps else ()
        shows = (views, min(views, epochs), longer, fitted, train is None)
        key = (*plan_key, settings.encoder.precision, kind, shows)
        if key in seen:
            continue
        seen.add(key)
        found = wanted.setdefault(cell.place.digest, {})
        samples = plan_run(cell.place.suite, settings).samples
        place = {id(record): i for i, record in enumerate(cell.place.suite.records)}
        # Tests are always in fp32, so that predictions of single images agree with them.
        for record in samples.test:
            found.setdefault((place[id(record)], ("fp32", kind)), set()).add(CENTRE)
        encoding = (settings.encoder.precision, kind)
        for record in samples.val:
            found.setdefault((place[id(record)], encoding), set()).add(CENTRE)
        order = None if train is None else ViewOrder(samples.train, views, settings.run.seed)
        lengths = _epochs_of(settings, samples.train)
        for i, record in enumerate(samples.train):
            shown = set(fitted)
            if order is not None:
                length = min(order.period, lengths[record.task])
                shown |= {order.at(epoch, [i])[0] for epoch in range(length)}
            found.setdefault((place[id(record)], encoding), set()).update(shown)
    return wanted


def fitted_views(settings: Settings) -> tuple[int, ...]:
    """Views of training images that are asked for outside the training loop."""
    own = settings.own
    is_fitted = settings.method.fits or "head" in type(own).model_fields
    return tuple(views_of(own.pictures())) if is_fitted else ()


def _epochs_of(settings: Settings, samples: Sequence[Record]) -> dict[int, int]:
    """Task -> epochs that show its images."""
    counts = Counter(record.task for record in samples)
    train, shots = settings.train, settings.run.shots
    if train is None:
        return {}
    if not train.joint_steps:
        return dict.fromkeys(counts, train.n_epochs(shots))
    return {task: joint_length(train, shots, len(samples), n).n_epochs(shots) for task, n in counts.items()}


def missing_views(wanted: Views, place: Place, backbone: Backbone, cache: FeatureCache) -> Views:
    """Those of the views that the cache does not have."""
    missing: Views = {}
    for encoding in sorted({encoding for _, encoding in wanted}):
        encoder = encoder_key(backbone, *encoding)
        asked = (
            ((place.suite.records[i].digest, view), i)
            for (i, own), views in wanted.items()
            if own == encoding
            for view in sorted(views)
        )
        while block := list(islice(asked, _ASKED_AT_ONCE[encoding[1]])):
            there = cache.get(encoder, [key for key, _ in block])
            for key, i in block:
                if key not in there:
                    missing.setdefault((i, encoding), set()).add(key[1])
    return missing


def portions(missing: Views) -> Iterator[tuple[Encoding, tuple[tuple[int, tuple[int, ...]], ...]]]:
    """Work for one job each: how to encode, and records with their views."""
    for encoding in sorted({encoding for _, encoding in missing}):
        portion: list[tuple[int, tuple[int, ...]]] = []
        n_views = 0
        for (i, own), views in sorted(missing.items()):
            if own != encoding:
                continue
            portion.append((i, tuple(sorted(views))))
            n_views += len(views)
            if n_views >= VIEWS_A_JOB:
                yield encoding, tuple(portion)
                portion, n_views = [], 0
        if portion:
            yield encoding, tuple(portion)
