"""Methods of other installed packages: entry points of the group ``softcpt.methods``.

[project.entry-points."softcpt.methods"]        in the package's pyproject.toml
mine = "my_package.methods:MINE"                the method's key, and where its Method is
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from softcpt.core.errors import Fault
from softcpt.methods.base import Method, MethodConfig

GROUP = "softcpt.methods"

KEY = r"[a-z0-9]+([.+-][a-z0-9]+)*"
"""What a key looks like: rows of a comparison are written as ``key:setting=value,key``."""

logger = logging.getLogger("softcpt")


@dataclass(frozen=True, order=True)
class Package:
    """An installed distribution."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Outside:
    """What other packages offer.

    Attributes:
        methods: by key.
        packages: key -> where it comes from.
        refused: key -> why it is left out.
    """

    methods: dict[str, Method] = field(default_factory=dict)
    packages: dict[str, Package] = field(default_factory=dict)
    refused: dict[str, Fault] = field(default_factory=dict)


def find_outside(taken: Collection[str]) -> Outside:
    """Import every method that an installed package offers; those that cannot be used are warned of.

    Args:
        taken: keys that no other package may have.
    """
    found: dict[str, list[tuple[Package, EntryPoint]]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append((_package_of(entry), entry))
    outside = Outside()
    for key, offers in sorted(found.items()):
        names = " and ".join(str(package) for package, _ in sorted(offers, key=lambda offer: offer[0]))
        package, entry = offers[0]
        loaded: Method | Fault
        if key in taken:
            loaded = _refusal(key, names, "softcpt has a method of that key", "rename it there")
        elif len(offers) > 1:
            loaded = _refusal(key, names, "both have a method of that key", "uninstall one of them")
        else:
            loaded = _load(key, package, entry)
        if isinstance(loaded, Fault):
            outside.refused[key] = loaded
            logger.warning("left out: %s", loaded)
        else:
            outside.methods[key], outside.packages[key] = loaded, package
    return outside


def _package_of(entry: EntryPoint) -> Package:
    return Package(entry.dist.name, entry.dist.version) if entry.dist else Package(entry.module, "")


def _load(key: str, package: Package, entry: EntryPoint) -> Method | Fault:
    """The method, or what is wrong with it."""
    mend = f"mend or uninstall {package.name}"
    try:
        made = entry.load()
    except (Exception, SystemExit) as error:  # whatever the code of others may raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _refusal(key, package, f"{entry.value} cannot be imported: {what}", mend)
    if not isinstance(made, Method):
        what = f"{entry.value} is a {type(made).__name__}, no softcpt.methods.base.Method"
        return _refusal(key, package, what, mend)
    if made.key != key:
        what = f"the entry point is called {key!r}, the method's own key is {made.key!r}"
        return _refusal(key, package, what, f"give both the same name in {package.name}")
    if not re.fullmatch(KEY, key):
        what = "a key is made of a-z, 0-9 and single -, . or + between them"
        return _refusal(key, package, what, f"rename it in {package.name}")
    if not (isinstance(made.config, type) and issubclass(made.config, MethodConfig)):
        return _refusal(key, package, "its config is no subclass of MethodConfig", mend)
    return made


def _refusal(key: str, package: Package | str, why: str, fix: str) -> Fault:
    return Fault("method", f"{key!r} of {package}: {why}", fix)
