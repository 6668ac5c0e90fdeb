"""Plans over many names, by a list: what is done is known from the manifest alone, and memory stays small."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from prediction.manifest import Part, join, scan
from prediction.outputs import Outputs
from prediction.plan import WHOLE, PredictionPlan, make_plan
from prediction.queries import Queries, Share, find_queries

COUNT = 50_000
BYTES = 1_500  # a file, at the most; a million then take 1.5 GB without what Python's tracing adds


@pytest.fixture
def queries(tmp_path: Path) -> Iterator[Queries]:
    names = "".join(f"day_{number % 97:02d}/camera/IMG_{number:07d}.JPG\n" for number in range(COUNT))
    (tmp_path / "list.txt").write_text(names)
    tracemalloc.start()
    yield find_queries([str(tmp_path / "list.txt")])
    tracemalloc.stop()


def plan(queries: Queries, share: Share, out: Path) -> PredictionPlan:
    return make_plan([], queries, share, Outputs(out, queries.files), is_known=True)


@pytest.mark.slow
def test_shares_of_many_files_are_joined(queries: Queries, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shares = [Share(number, 3) for number in (1, 2, 3)]
    plans = [plan(queries, share, out) for share in shares]
    assert sorted(file for each in plans for file in each.left) == queries.files
    assert all(abs(len(each.left) - COUNT / 3) < 1000 for each in plans)
    for each in plans:
        with Part(out, each.share) as part:
            for number, file in enumerate(each.left[:-1]):  # one of each is missing
                found = {"found": 0, "class": None} if number % 2 else {"found": 1, "class": "cat"}
                record = {"file": file, "value": None, "area": 0, "score": 0.5, "certainty": 0.5, **found}
                part.append([{**record, **each.outputs.paths(file)}])
    assert all(plan(queries, each.share, out).left == each.left[-1:] for each in plans)
    joined = join(out)
    missing = {each.left[-1] for each in plans}
    assert {file for file in queries.files if file not in joined.files} == missing
    assert joined.nothing + joined.found["cat"] == COUNT - 3
    files = [group.file for group in scan(out / "manifest.jsonl")]
    assert files == sorted({*queries.files} - missing)
    assert {*plan(queries, WHOLE, out).left} == missing
    assert tracemalloc.get_traced_memory()[1] < BYTES * COUNT
