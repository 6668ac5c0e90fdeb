import json
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from engine.comparison import difference, moved, wins
from engine.results import EPISODES, OneClassResult, read_result
from tests.toy import generator, toy_config
from tests.written import CLASSES, episode_row, seed_metrics, write_test
from tools import compare, report
from tools.paper.paired import pair_folds, read_tests
from tools.paper.runs import Run
from tools.paper.tables import Sheet
from util.errors import UserError


def write(path: Path, right: list[int], split: int = 0, **keys: object) -> np.ndarray:
    """A result of `test.py` with one episode of 100 pixels for each number of right ones, every other one hard."""
    rows = [episode_row(number, count) for number, count in enumerate(right)]
    miou = float(np.mean([np.mean(right[start::2]) for start in (0, 1)])) / 100
    check = {
        "other_class": {"fall": {"mean": 0.25, "low": 0, "high": 1}, "hard_fall": {"mean": 0.5, "low": 0, "high": 1}},
        "empty_mask": {"fall": None, "hard_fall": {"mean": -0.125, "low": -1, "high": 1}},
    }
    write_test(toy_config(path.parent, split=split, **keys), seed_metrics(5, miou), path=path, support_check=check)
    path.with_suffix(EPISODES).write_text("".join(row.model_dump_json(by_alias=True) + "\n" for row in rows))
    return np.array(right)


def test_table_of_two_folds_and_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = generator()
    counts = {}
    for name, lead in (("ours", 20), ("theirs", 0)):
        for split in (0, 1):
            for seed in (0, 1):
                path = tmp_path / name / f"seed{seed}" / str(split) / "result_test_1shot.json"
                counts[name, split, seed] = write(path, (rng.integers(20, 60, 12) + lead).tolist(), split)
    out = tmp_path / "table.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", "ours", "theirs", "--out", str(out)])
    compare.main()
    text = out.read_text()
    assert text in capsys.readouterr().out
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    mean = {name: np.mean([value for key, value in counts.items() if key[0] == name]) for name in ("ours", "theirs")}
    assert rows["ours"][0] == "4" and rows["ours"][2] == "-"
    assert float(rows["ours"][1]) == pytest.approx(mean["ours"], abs=0.051)  # classes and trainings are of one size
    assert float(rows["theirs"][2].split()[0]) == pytest.approx(mean["ours"] - mean["theirs"], abs=0.051)
    assert rows["theirs"][5:] == ["-25.0", "-50.0", "-", "+12.5"]
    hard = np.arange(12) % 4 < 2
    hardest = np.mean([values[hard] for key, values in counts.items() if key[0] == "ours"])
    assert float(rows["ours"][3]) == pytest.approx(hardest, abs=0.051)
    pairs = pair_folds(read_tests(Path("ours")), read_tests(Path("the*/*/*/result_test_1shot.json")))
    cats = [line for line in text.splitlines() if "| cat |" in " ".join(line.split())]
    assert [cell.strip() for cell in cats[-1].split("|")[1:-1]] == ["toy 1", "cat", *map(str, wins(pairs[-1][0])[1])]
    found = difference(pairs)
    assert found is not None and found.text() == rows["theirs"][2]
    assert f"- Of all episodes, {moved([*chain(*pairs)]):.1%} have IoUs more than 0.02 apart." in text


def test_classes_are_called_as_in_their_own_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        for split, classes in ((0, CLASSES), (1, {1: "grass", 2: "tree"})):
            path = tmp_path / name / f"{split}" / "result_test_1shot.json"
            write(path, generator().integers(20, 60, 12).tolist(), split)
            result = json.loads(path.read_text())
            path.write_text(json.dumps(result | {"classes": classes}))
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    compare.main()
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    found = [(line[1].strip(), line[2].strip()) for line in lines if len(line) == 7 and line[1].strip()[:3] == "toy"]
    assert found == [("toy 0", "cat"), ("toy 0", "dog"), ("toy 1", "grass"), ("toy 1", "tree")]


def test_report_compares_rows_that_were_tested_alike(tmp_path: Path) -> None:
    rng = generator()
    runs = {}
    for name, episodes in (("alone", 12), ("other episodes", 11), ("concat", 12), ("whole", 12)):
        path = tmp_path / name / "result_test_1shot.json"
        write(path, rng.integers(20, 60, episodes).tolist())
        result = read_result(path, OneClassResult)
        runs[name] = {0: [Run(result, result.results[0])]}
    (tmp_path / "alone" / "result_test_1shot.episodes.jsonl").unlink()
    table = report.paired_table(Sheet("Table 3: components", ["fold 0"], runs=runs))
    assert table is not None and [row[0] for row in table.rows] == ["whole", "concat"]
    found = difference(pair_folds(read_tests(tmp_path / "whole"), read_tests(tmp_path / "concat")))
    assert found is not None and table.rows[1][3] == found.text()
    assert report.paired_table(Sheet("Table 3: components", ["fold 0"], runs={"whole": runs["whole"]})) is None


def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "a" / "result_test_1shot.json", tmp_path / "b" / "result_test_1shot.json"
    write(one, [50, 50, 60])
    with pytest.raises(UserError, match=r"nothing: no result of a test"):
        read_tests(tmp_path / "nothing")
    write(other, [50, 50])
    with pytest.raises(UserError, match=r"b/result_test_1shot.json: other episodes than"):
        pair_folds(read_tests(one), read_tests(other))
    write(other, [50, 50, 60], split=2)
    with pytest.raises(UserError, match="no fold, shot and seed in common"):
        pair_folds(read_tests(one), read_tests(other))
    write(other, [50, 50, 60], fusion="concat")
    with pytest.raises(UserError, match=r"b/result_test_1shot.json: not the method of .*a/result"):
        read_tests(tmp_path)
    write(other, [50, 50, 60])
    lines = other.with_suffix(EPISODES).read_text()
    one.with_suffix(EPISODES).write_text(lines.replace('"query":"2.jpg"', '"query":"9.jpg"'))
    with pytest.raises(UserError, match=r"b/result_test_1shot.json: other episodes than"):
        pair_folds(read_tests(one), read_tests(other))
    write(one, [50, 90, 60])
    one.with_suffix(EPISODES).write_text(lines)
    with pytest.raises(UserError, match=r"seed 5 has mIoU 52.50, not 72.50; test again"):
        read_tests(one)
    one.with_suffix(EPISODES).write_text(lines.replace('"seed":5', '"seed":6'))
    with pytest.raises(UserError, match=r"not the episodes of result_test_1shot.json: seed 5 is missing; test again"):
        read_tests(one)
    other.with_suffix(EPISODES).unlink()
    with pytest.raises(UserError, match=r"episodes\.jsonl:1: not an episode of a test .*No such file.*; test again"):
        read_tests(other)
    write(other, [50, 50, 60])
    write(one, [50, 90, 60])
    monkeypatch.setattr(sys, "argv", ["compare", str(one), str(other), "--out", str(one / "table.md")])
    with pytest.raises(UserError, match=r"(Not a directory|File exists); fix that, then give another --out"):
        compare.main()
    assert " 72.5 |" in capsys.readouterr().out  # what has been computed is not lost
    monkeypatch.setattr(sys, "argv", ["compare", str(one)])
    with pytest.raises(UserError, match="two or more results"):
        compare.main()
