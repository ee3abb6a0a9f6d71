"""The public names, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import softcpt

ROOT = Path(__file__).parents[2]


def typed_names():
    """Name -> module:attribute of the block that only type checkers read."""
    tree = ast.parse(Path(softcpt.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        for alias in node.names
    }


def test_importing_the_package_pulls_in_nothing_heavy():
    code = "import sys, softcpt; print(*sorted({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", softcpt.__all__)
def test_every_public_name_resolves(name):
    assert getattr(softcpt, name) is not None
    assert name in dir(softcpt)


def test_lazy_names_are_what_type_checkers_see():
    assert typed_names() == softcpt._HOME


def test_all_lists_the_lazy_names_and_the_version():
    assert sorted(softcpt.__all__) == sorted([*softcpt._HOME, "__version__"])


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = softcpt.nothing


def test_reference_page_describes_exactly_the_public_names():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    described = {
        line.removeprefix("## `").split("`")[0].split("(")[0]
        for line in page.splitlines()
        if line.startswith("## `")
    }
    assert described == set(softcpt.__all__)


def test_version_in_citation_and_changelog_is_the_package_s():
    assert f"\nversion: {softcpt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {softcpt.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_no_pinned_version_names_an_address_or_a_local_file():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all("==" in line and "://" not in line and " @ " not in line for line in pins)
