from pathlib import Path

import pytest

from tests.toy import toy_config
from tools import loading


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PICTURE_SIZE", 120)
    found = loading.measure_loading(toy_config(tmp_path, shot=2))
    assert found["pictures_per_second"] > 0 and found["size"] == 120
