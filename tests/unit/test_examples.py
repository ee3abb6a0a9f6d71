"""Every example in a docstring gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import softcpt

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(softcpt.__path__, "softcpt.")
    if "__main__" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
