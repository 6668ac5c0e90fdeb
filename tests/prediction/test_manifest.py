import json
from pathlib import Path
from typing import Any

from prediction.manifest import Part, join, read_manifest
from prediction.queries import Share


def records(file: str, found: int, **others: Any) -> list[dict[str, Any]]:
    return [{"file": file, "class": f"c{n}", "found": found, **others} for n in range(max(1, found))]


def test_parts_join_the_manifest_and_win(tmp_path: Path) -> None:
    with Part(tmp_path, Share(1, 1)) as part:
        part.append(records("b", 1))
        part.append(records("a", 2, old=True))
    join(tmp_path)
    assert [json.loads(line)["file"] for line in (tmp_path / "manifest.jsonl").read_text().splitlines()] == list("aab")
    with Part(tmp_path, Share(1, 2)) as first, Part(tmp_path, Share(2, 2)) as other:
        first.append(records("é\n\udcff", 0))
        other.append(records("a", 1, old=False))
    joined = {"é\n\udcff": records("é\n\udcff", 0), "a": records("a", 1, old=False), "b": records("b", 1)}
    assert read_manifest(tmp_path) == joined
    join(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
    assert read_manifest(tmp_path) == joined


def test_torn_lines_and_incomplete_images_do_not_count(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
    with Part(tmp_path, Share(1, 2)) as part:
        part.append(records("whole", 2))
        part.append(records("torn", 3))
    path = tmp_path / "manifest.part1of2.jsonl"
    text = path.read_bytes()
    last = text.rstrip().rindex(b"\n") + 1
    for end in (last - 1, last, last + 1, len(text) - 2):
        path.write_bytes(text[:end])
        assert list(read_manifest(tmp_path)) == ["whole"]
    path.write_bytes(b'\x00\x00\n[1]\n{"file": 3}\n' + text)
    assert list(read_manifest(tmp_path)) == ["whole", "torn"]
