"""Where the reference numbers are."""

from pathlib import Path

import pytest
from reference import golden_folder


@pytest.fixture(scope="session")
def golden() -> Path:
    return golden_folder()
