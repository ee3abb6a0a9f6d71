"""A finished run in use: the text side once, then images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import cpu_count
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from softcpt.clip.backbone import Backbone
from softcpt.core.errors import ConfigError, Fault, ImageError, nearest
from softcpt.data.image import centre_pixels, open_image
from softcpt.engine.adapter import restore_classifier
from softcpt.engine.evaluate import load_run_backbone
from softcpt.engine.features import IMAGES_AT_ONCE, encode_pixels
from softcpt.engine.runs import Run, open_run

Source = Path | str | bytes | Image


@dataclass(frozen=True)
class Prediction:
    """What a run makes of one image for one task.

    Attributes:
        image: path as given; ``<image i>`` for the i-th source that has none.
        task: the task's name.
        predictions: classes and probabilities (over the task's classes), the likeliest first.
        fault: why the image could not be read, else None.
    """

    image: str
    task: str
    predictions: tuple[tuple[str, float], ...]
    fault: str | None = None


class Predictor:
    """Predicts the classes of images for the tasks of a run.

    Args:
        run: a run or its folder.
        backbone: where the run's backbone is now, if not where it was.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        RunError: the folder holds no finished run.
        AdapterError: its files or the backbone are not what they were.

    Example:
        >>> predictor = Predictor("runs/leaves")  # doctest: +SKIP
        >>> for row in predictor.predict(["leaf.jpg"]):  # doctest: +SKIP
        ...     print(row.task, row.predictions[0])
    """

    def __init__(
        self, run: Run | Path | str, *, backbone: Backbone | Path | str | None = None, device: str = "auto"
    ) -> None:
        self.run = run if isinstance(run, Run) else open_run(run)
        self.backbone = load_run_backbone(self.run, backbone, device)
        self.tasks = self.run.adapter.tasks
        self._kind = self.run.adapter.settings.method.image_features
        self._score = restore_classifier(self.run.adapter, self.backbone).scorer()

    def predict(
        self, sources: Iterable[Source] | Source, tasks: Sequence[str] | None = None, top: int | None = 3
    ) -> Iterator[Prediction]:
        """One row per image and task, in the order of the images.

        Args:
            sources: files, the bytes of files, or PIL images.
            tasks: names of the tasks to predict; None for all.
            top: how many classes to name; None for all.

        Raises:
            ConfigError: a task the run does not know, or ``top`` below 1.
        """
        wanted = self._wanted(tasks)
        if top is not None and top < 1:
            raise ConfigError(Fault("top", f"{top} classes", "ask for at least 1"), about="the prediction")
        many = [sources] if isinstance(sources, str | Path | bytes | Image) else sources
        return self._rows(iter(many), wanted, top)

    def _wanted(self, tasks: Sequence[str] | None) -> list[int]:
        index = {task.name: t for t, task in enumerate(self.tasks)}
        if tasks is None:
            return list(index.values())
        asked = [tasks] if isinstance(tasks, str) else tasks
        faults = [
            Fault("task", f"the run has no task {name!r}", nearest(name, index))
            for name in asked
            if name not in index
        ]
        if faults:
            raise ConfigError(faults, about="the prediction")
        return [index[name] for name in dict.fromkeys(asked)]

    def _rows(self, sources: Iterator[Source], tasks: Sequence[int], top: int | None) -> Iterator[Prediction]:
        done = 0
        with ThreadPoolExecutor(max_workers=cpu_count() or 1) as pool:
            while piece := list(islice(sources, IMAGES_AT_ONCE)):
                pixels = list(pool.map(self._pixels, piece))
                good = [p for p in pixels if isinstance(p, Tensor)]
                features = (
                    encode_pixels(self.backbone, torch.stack(good), "fp32", self._kind) if good else None
                )
                row = 0
                for i, (source, decoded) in enumerate(zip(piece, pixels, strict=True)):
                    name = str(source) if isinstance(source, str | Path) else f"<image {done + i}>"
                    if isinstance(decoded, str) or features is None:
                        for t in tasks:
                            yield Prediction(name, self.tasks[t].name, (), str(decoded))
                        continue
                    for t in tasks:
                        yield Prediction(
                            name, self.tasks[t].name, self._likeliest(features[row : row + 1], t, top)
                        )
                    row += 1
                done += len(piece)

    def _pixels(self, source: Source) -> Tensor | str:
        try:
            image = open_image(Path(source) if isinstance(source, str) else source)
            return centre_pixels(image, self.backbone.pixels)
        except ImageError as error:
            return error.faults[0].what

    def _likeliest(self, feature: Tensor, task: int, top: int | None) -> tuple[tuple[str, float], ...]:
        with torch.no_grad():
            probabilities = self._score(feature, task).softmax(1)[0].cpu()
        classes = self.tasks[task].classes
        # A stable sort, so that equal scores are decided for the first class, as in the evaluation.
        order = torch.sort(probabilities, descending=True, stable=True).indices.tolist()
        return tuple((classes[c], float(probabilities[c])) for c in order[:top])
