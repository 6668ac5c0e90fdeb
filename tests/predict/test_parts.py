"""Several processes write one result."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import predict
from prediction.queries import Share
from tests.predict.runs import arguments, killed_at, lasting, manifest, masks, write_photos
from tests.processes import start_processes
from util.errors import UserError
from util.files import locked


def test_parts_write_what_one_process_writes(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", 7)
    (photos / "torn.jpg").write_bytes((photos / "0.jpg").read_bytes()[:400])
    assert run() == 1
    alone, files = lasting(tmp_path), masks(tmp_path)
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "12")
    for name, value in (("MIN", 10), ("STEP", 2), ("COUNT", 3)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    codes = [run("--part", part) for part in ("3/3", "slurm", "2/3")]  # the second again
    assert sorted(codes)[0] == 0 and not (tmp_path / "out/manifest.jsonl").exists()
    with pytest.raises(UserError, match=r"holds parts of 3; go on with --part NUMBER/3, or join them by --finish"):
        run("--part", "1/2")
    capsys.readouterr()
    assert run("--finish") == 1
    missing = re.findall("(.*): is missing", capsys.readouterr().err)
    assert {*missing} == {f"{n}.jpg" for n in [*range(7), "torn"] if Share(1, 3).has(f"{n}.jpg")} | {"torn.jpg"}
    assert run("--part", "1/3") in (0, 1) and run("--finish", "--html") == 1
    assert "1 images are missing:\ntorn.jpg: is missing" in capsys.readouterr().err
    assert lasting(tmp_path) == alone and masks(tmp_path) == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("classes.txt", "index.html", "manifest.jsonl", "masks", "overlays", "run.json")
    ]


def part_of(weights: Path, tmp_path: Path, part: str, kill_at: int | None) -> int:
    """predict.main for one part, killed at its so many-th image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments(weights, tmp_path, "--part", part))
        return killed_at(kill_at) if kill_at else predict.main()


def test_parts_that_are_killed_and_done_twice(weights: Path, run: Any, tmp_path: Path) -> None:
    """Real processes: three at a time, some are killed on the way, one part is done by two."""
    write_photos(tmp_path / "photos", 8)
    assert run() == 0
    alone = lasting(tmp_path)
    shutil.rmtree(tmp_path / "out")
    jobs = [("1/3", 1), ("2/3", 2), ("3/3", None), ("3/3", None), ("1/3", None), ("2/3", None)]
    for some in (jobs[:3], jobs[3:]):
        processes = [start_processes(1, part_of, weights, tmp_path, *job)[0][0] for job in some]
        for process, (_, kill_at) in zip(processes, some, strict=True):
            process.join()
            assert process.exitcode == (-signal.SIGKILL if kill_at else 0)
    assert run("--finish") == 0
    assert lasting(tmp_path) == alone


def test_a_part_that_another_process_does(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    assert run("--part", "1/2") == 0
    with locked(tmp_path / "out", ".lock.1of2", ""):
        for more in (["--part", "1/2"], [], ["--finish"]):
            with pytest.raises(UserError, match="another run is writing to it"):
                run(*more)
    for wrong in ("0/2", "3/2", "1/0", "x", "1/2/3", "slurm"):
        with pytest.raises(UserError, match="--part"):
            run("--part", wrong)


def test_what_is_expected_is_noted_once(weights: Path, support: Path, tmp_path: Path, monkeypatch: Any) -> None:
    write_photos(tmp_path / "photos", 6)
    words = [word for word in arguments(weights, tmp_path, "--part") if word != "--no-expectation"]

    def run_part(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        assert predict.main() == 0
        return json.loads((tmp_path / "out/run.json").read_text())["choice"]

    noted = run_part("1/2")
    (expected,) = noted["expected"].values()
    assert expected["interval"][0] <= expected["iou"] <= expected["interval"][1]
    assert noted["threshold"] == expected["threshold"] and noted["method"] == "HMNet"
    monkeypatch.setattr("prediction.choice.leave_out", None)  # the other part takes over what is noted
    assert run_part("2/2") == noted
    monkeypatch.setattr(sys, "argv", [*words[:-1], "--finish"])
    assert predict.main() == 0
    certainties = {record["file"]: record["certainty"] for record in manifest(tmp_path)}
    unsure = json.loads((tmp_path / "out/run.json").read_text())["least_sure"]
    assert unsure == dict(sorted(certainties.items(), key=lambda item: item[::-1])[:5])
