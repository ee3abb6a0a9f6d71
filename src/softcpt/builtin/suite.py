"""What a built-in suite is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class BuiltinTask:
    """One task, as ``suite.yaml`` describes it.

    Attributes:
        description: a sentence about the task.
        template: zero-shot prompt with one ``{}``.
        classes: what the maker of pictures calls a class -> its readable name.
    """

    description: str
    template: str
    classes: Mapping[str, str]


@dataclass(frozen=True)
class BuiltinSuite:
    """A suite that the package makes.

    Attributes:
        name: of the suite.
        description: a sentence about it.
        source: where its pictures come from.
        tasks: name -> task, in order.
        images_per_class: as many as are made unless asked otherwise.
        most_images: of a class; None: no limit.
        pictures: task, class, seed, number and size in pixels -> that many pictures of the class. A picture
            does not depend on which other tasks and classes are made.
    """

    name: str
    description: str
    source: str
    tasks: Mapping[str, BuiltinTask]
    images_per_class: int
    most_images: int | None
    pictures: Callable[[str, str, int, int, int], Iterable[Image.Image]]
