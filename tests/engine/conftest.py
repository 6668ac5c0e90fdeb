"""Fixtures of several files of this folder."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.runs import KEYS, drive


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The uninterrupted run and its last snapshot."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, drive(folder, **KEYS)
