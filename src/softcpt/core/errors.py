"""One family of errors; each lists all faults of an input at once.

    SoftCPTError            1
    ├── ConfigError         2   options, keys and values
    ├── SuiteError          3   folders, manifests, images of a suite
    │   └── ImageError      3   one picture that cannot be read
    ├── BackboneError       4   weights and architectures
    ├── AdapterError        4   what a run has learned
    └── RunError            5   run folders

The number is the exit code of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, what, and what to do about it."""

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.fix})" if self.fix else "")


class SoftCPTError(Exception):
    """Base of all errors a user can cause and mend.

    Args:
        faults: everything that is wrong, in the order a user would mend it; at least one.
        about: what was being read or done, for the headline.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, faults: Sequence[Fault] | Fault, *, about: str) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        self.about = about
        super().__init__(self.headline + "".join(f"\n  {fault}" for fault in self.faults))

    @property
    def headline(self) -> str:
        """One line: how many faults, in what."""
        n = len(self.faults)
        return f"{n} fault{'' if n == 1 else 's'} in {self.about}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders by pickling their arguments; ours has keyword-only ones.
        return (_rebuild, (type(self), self.faults, self.about))


def _rebuild(kind: type[SoftCPTError], faults: tuple[Fault, ...], about: str) -> SoftCPTError:
    return kind(faults, about=about)


class ConfigError(SoftCPTError):
    """An unknown option, or a value that cannot be."""

    exit_code = 2


class SuiteError(SoftCPTError):
    """The data: folders, manifests, splits, pictures."""

    exit_code = 3


class ImageError(SuiteError):
    """One picture that cannot be read."""


class BackboneError(SoftCPTError):
    """Weights that are missing, refused or of an architecture we cannot run."""

    exit_code = 4


class AdapterError(SoftCPTError):
    """What a run has learned does not load: edited, truncated, or made for another backbone."""

    exit_code = 4


class RunError(SoftCPTError):
    """A run folder: unfinished, occupied, or not one."""

    exit_code = 5


class Collector:
    """Runs steps that do not depend on one another, so that the faults of all come out in one error."""

    def __init__(self) -> None:
        self.errors: list[SoftCPTError] = []

    def keep(self, step: Callable[[], Result]) -> Result | None:
        """The step's result, or None where it failed; its faults are kept."""
        try:
            return step()
        except SoftCPTError as error:
            self.errors.append(error)
            return None

    def raise_any(self) -> None:
        """Raise one error with all faults kept so far; its kind is the first's."""
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise self.errors[0]
        faults = [fault for error in self.errors for fault in error.faults]
        about = " and ".join(dict.fromkeys(error.about for error in self.errors))
        raise type(self.errors[0])(faults, about=about)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean "x"?``, or the list of what is known when nothing is near; empty if none is known."""
    known = sorted(known)
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(f'"{n}"' for n in near) + "?"
    return "known: " + ", ".join(known)
