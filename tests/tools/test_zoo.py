"""The zoo's table and the documents that are made of it."""

import pytest

from prediction.zoo import entries
from tools.zoo import DOCS, cards, docs, groups, main


def test_documents_are_current() -> None:
    """`python -m tools.zoo --write` renews them."""
    assert DOCS.read_text(encoding="utf-8") == docs()
    for path, text in cards():
        assert path.read_text(encoding="utf-8") == text


def test_the_table_has_every_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["zoo"])
    main()
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    assert {group.name for group in groups()} <= lines.keys()
    assert sum(len(group.folds) for group in groups()) == len(entries())
    assert "72.2, 75.4, 70.0, 63.9" in lines["hmnet-pascal-{0-3}-resnet50-1"]  # the paper's Table 1
    assert "1 of 1" in lines["hmnet-lite"] and "0 of 4" in lines["bam-coco-{0-3}-vgg-5"]
