"""A second run into the same folder."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prediction.manifest import read_manifest
from prediction.settings import is_ours
from tests.predict.runs import arguments, killed_at, lasting, manifest, masks, read, scene, write_photos
from tests.processes import start_processes
from tests.toy import generator
from util.errors import UserError
from util.files import claimed
from util.visualize import save_index


def test_what_is_done_is_left_in_peace(run: Any, tmp_path: Path, support: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    out = tmp_path / "out"
    assert run() == 0
    expected = lasting(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    (out / "masks/0.png").write_bytes((out / "masks/0.png").read_bytes()[:-9])
    (out / "overlays/1.jpg").write_bytes((out / "overlays/1.jpg").read_bytes()[:-9])
    (out / "overlays/2.jpg").unlink()
    (out / "masks/.3.png.77.tmp").write_text("half")
    lines = [json.dumps(record) + "\n" for record in manifest(tmp_path) if record["file"] != "3.jpg"]
    (out / "manifest.jsonl").write_text("".join(lines) + '{"file": "3.jpg", "cla')
    torn = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    assert run() == 0
    assert lasting(tmp_path) == expected
    again = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    assert {path.stem for path in again if again[path] != torn[path]} == {"3"}  # of the others nothing was read
    assert run("--verify") == 0
    assert lasting(tmp_path) == expected
    again = {path: path.stat().st_mtime_ns for path in out.glob("*/*.*")}
    assert again.keys() == before.keys()
    assert {path.stem for path in before if again[path] != before[path]} == {"0", "1", "2", "3"}
    ours, others = out / "masks/.0.png.77.tmp", out / "masks/.mine.tmp"
    ours.touch()
    others.touch()
    assert run("--overwrite") == 0
    assert lasting(tmp_path) == expected and others.exists() and not ours.exists()
    assert all(path.stat().st_mtime_ns > again[path] for path in again)
    next(support.glob("thing5/*.jpg")).with_suffix(".png").unlink()
    next(path for path in support.glob("thing5/*.jpg") if not path.with_suffix(".png").exists()).unlink()
    refusal = "holds what other weights, settings, supports or query folders gave.*--overwrite"
    for changed in ([], ["--opts", "qim_skip", "channel"]):
        with pytest.raises(UserError, match=refusal):
            run(*changed)
    assert lasting(tmp_path) == expected
    assert run("--overwrite") == 0
    assert [record["file"] for record in lasting(tmp_path)] == sorted(record["file"] for record in lasting(tmp_path))


def test_a_killed_run_goes_on(run: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 12)
    monkeypatch.setattr(sys, "argv", arguments(weights, tmp_path))
    number = int(generator().integers(2, 13))
    (process,), _ = start_processes(1, killed_at, number)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    noted = [Path(file).stem for file in read_manifest(tmp_path / "out")]
    before = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("masks/*.png")}
    assert len(noted) == number - 1 and {*noted} < {*before}
    assert run() == 0
    assert {record["file"] for record in manifest(tmp_path)} == {f"{number}.jpg" for number in range(12)}
    assert not list((tmp_path / "out").glob("manifest.part*"))
    after = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("masks/*.png")}
    assert [name for name in before if after[name] == before[name]] == [name for name in before if name in noted]


def test_a_full_disk_loses_nothing(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    assert run() == 0
    expected, lines = lasting(tmp_path), (tmp_path / "out/manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/manifest.jsonl").write_text("".join(line for line in lines if '"1.jpg"' not in line))
    part = tmp_path / "out/manifest.part1of1.jsonl"
    part.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device; make room and run the same command again"):
        run()
    part.unlink()
    assert run() == 0 and lasting(tmp_path) == expected


def test_one_run_at_a_time(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    assert run() == 0
    with claimed(tmp_path / "out", is_ours), pytest.raises(UserError, match="another run is writing to it"):
        run()
    assert run() == 0


def test_a_mask_that_was_exchanged_is_written_anew(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    assert run() == 0
    expected, folder = masks(tmp_path), tmp_path / "out/masks"
    others = {"0.png": np.zeros((5, 5), np.uint8), "1.png": 7 - read(folder / "1.png"), "2.png": read(folder / "2.png")}
    others["2.png"] = np.where(np.arange(52) < 26, others["2.png"], 0).astype(np.uint8)  # half of it
    others["2.png"][0, 0] = 1
    for name, mask in others.items():
        save_index(folder / name, mask)
    remedy = "run again with --verify, which writes it anew"
    with pytest.raises(UserError, match=rf"0\.png: is 5x5, and the manifest says 52x40; {remedy}"):
        run("--format", "csv,coco")
    (folder / "3.png").unlink()
    assert run("--format", "csv,coco", "--verify") == 0 and masks(tmp_path) == expected
    with Image.open(folder / "0.png") as opened:
        opened.convert("RGBA").save(folder / "0.png")
    with pytest.raises(UserError, match=rf"0\.png: no readable mask \(its mode is RGBA, .*; {remedy}"):
        run("--format", "csv")
    assert run("--verify") == 0 and masks(tmp_path) == expected
    (folder / "3.png").unlink()
    with pytest.raises(UserError, match=rf"3\.png: no readable mask .*; {remedy}"):
        run("--format", "csv")


def test_replaced_and_renamed_images(run: Any, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    assert run() == 0
    folder = tmp_path / "out/masks"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    Image.fromarray(scene(30, 44)).save(photos / "0.jpg")
    (photos / "1.jpg").rename(photos / "new.jpg")
    (photos / "2.png").write_bytes((photos / "2.jpg").read_bytes())  # two would be called 2
    content = bytearray((photos / "3.jpg").read_bytes())
    content[-5] ^= 1
    (photos / "3.jpg").write_bytes(content)  # of the same size
    assert run() == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("0.png", "1.png", "2.jpg.png", "2.png.png", "3.png", "new.png")
    ]
    assert {record["file"] for record in manifest(tmp_path)} == {f"{n}.jpg" for n in (0, 1, 2, 3, "new")} | {"2.png"}
    assert read(folder / "0.png").shape == (30, 44) and (folder / "0.png").stat().st_mtime_ns > before["0.png"]
    assert (folder / "3.png").stat().st_mtime_ns == before["3.png"]
    assert run("--verify") == 0
    assert (folder / "3.png").stat().st_mtime_ns > before["3.png"]
