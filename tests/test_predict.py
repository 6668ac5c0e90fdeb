import base64
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import predict
from prediction.manifest import Part, Record, read_manifest
from prediction.predictor import Predictor
from prediction.queries import Share
from prediction.settings import is_ours
from tests.processes import start_processes
from tests.toy import ROOT, draw_image, generator, write_experiment
from util.errors import UserError
from util.files import claimed, locked

COLORS = (3, 5)  # of the classes that the supports show


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights where training leaves them, with its config."""
    return write_experiment(tmp_path_factory.mktemp("predict"))[1]


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """Two classes, each with two images in a subfolder."""
    for number, class_id in enumerate(COLORS * 2):
        image, mask = draw_image(generator(), 40, 50, [class_id])
        folder = tmp_path / "support" / f"thing{class_id}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.jpg")
        Image.fromarray(((mask == class_id) * 255).astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "support"


def scene(height: int = 40, width: int = 52) -> np.ndarray:
    return draw_image(generator(), height, width, list(COLORS))[0]


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(scene()).save(folder / f"{number}.jpg")
    return folder


def arguments(weights: Path, tmp_path: Path, *more: object) -> list[str]:
    words = ("--weights", weights, "--no-expectation", "--support", tmp_path / "support")
    return ["predict.py", *map(str, (*words, "--query", tmp_path / "photos", "--out", tmp_path / "out", *more))]


@pytest.fixture
def run(weights: Path, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*more: object) -> int:
        monkeypatch.setattr(sys, "argv", arguments(weights, tmp_path, *more))
        return predict.main()

    return call


def manifest(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]


def lasting(tmp_path: Path) -> list[dict[str, Any]]:
    """The manifest without what differs from run to run."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in manifest(tmp_path)]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def write_odd_pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """Images of all kinds; their heights and widths as shown."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(scene(90, 40)).save(folder / "portrait.jpg")
    Image.fromarray(scene(40, 400)).save(folder / "panorama.webp")
    Image.fromarray(scene(1500, 4000)).save(folder / "large.jpg")
    Image.fromarray(scene(32, 32)).save(folder / "small.png")
    Image.fromarray(scene()).convert("L").save(folder / "grey.jpg")
    Image.fromarray(np.dstack([scene(), np.full((40, 52), 200, np.uint8)])).save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.tif"), scene().astype(np.uint16) << 8)
    cv2.imwrite(str(folder / "deep_grey.png"), scene()[..., 0].astype(np.uint16) << 8)
    Image.fromarray(scene()).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(scene()).quantize(16).save(folder / "palette.png")
    Image.fromarray(scene()).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(scene()[..., 0] > 99).save(folder / "two_tone.png")
    sizes = {"portrait.jpg": (90, 40), "panorama.webp": (40, 400), "large.jpg": (1500, 4000), "small.png": (32, 32)}
    return {path.name: sizes.get(path.name, (40, 52)) for path in folder.iterdir()} | {"turned.jpg": (52, 40)}


def test_images_of_all_kinds(run: Any, weights: Path, support: Path, tmp_path: Path) -> None:
    sizes = write_odd_pictures(tmp_path / "photos")
    assert run("--batch", 3) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "1 thing3\n2 thing5\n"
    by_file: dict[str, list[dict[str, Any]]] = {}
    for record in manifest(tmp_path):
        by_file.setdefault(record["file"], []).append(record)
    assert by_file.keys() == sizes.keys()
    for file, records in by_file.items():
        mask = read(tmp_path / "out" / records[0]["mask"])
        assert mask.shape == sizes[file]
        found = [record for record in records if record["class"]]
        assert len(found) == records[0]["found"] == len(np.unique(mask[mask > 0]))
        for record in found:
            region = mask == record["value"]
            rows, columns = np.nonzero(region)
            assert record["class"] == f"thing{COLORS[record['value'] - 1]}" and record["area"] == region.sum()
            assert record["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert 0 < record["score"] < 1 and record["seconds"] > 0
        drawn = read(tmp_path / "out" / records[0]["overlay"])
        assert 320 <= max(drawn.shape) <= 2200
    assert len(by_file) < len(manifest(tmp_path))  # something is found
    predictor = Predictor.from_checkpoint(weights.parents[1] / "config.yaml", weights, "cpu")
    classes = {}
    for folder in sorted(support.iterdir()):
        images = sorted(folder.glob("*.jpg"))
        classes[folder.name] = images, [path.with_suffix(".png") for path in images]
    predictor.set_support(classes)
    expected = predictor.predict(tmp_path / "photos/portrait.jpg").mask
    assert (read(tmp_path / "out/masks/portrait.png") != expected).mean() < 0.01


def test_masks_keep_the_values_of_the_supports(run: Any, tmp_path: Path, support: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    for folder in sorted(support.iterdir()):
        for path in folder.iterdir():
            path.rename(support / path.name)
        folder.rmdir()
    for number, class_id in enumerate(COLORS * 2):
        path = support / f"{number}.png"
        Image.fromarray((read(path) // 255 * class_id * 10).astype(np.uint8)).save(path)
    (support / "classes.txt").write_text("30 blue\n50 violet\n")
    assert run() == 0
    records = manifest(tmp_path)
    assert {(record["class"], record["value"]) for record in records} <= {("blue", 30), ("violet", 50), (None, None)}
    for record in records:
        mask = read(tmp_path / "out" / record["mask"])
        assert set(np.unique(mask)) <= {0, 30, 50} and (mask == record["value"]).sum() == record["area"]
    assert run("--classes", "violet", "--out", tmp_path / "other") == 0
    assert (tmp_path / "other/classes.txt").read_text() == "50 violet\n"


def test_boxes_as_supports(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    file = tmp_path / "boxes.csv"
    file.write_text("file,left,top,right,bottom,class\nthing3/0.jpg,5,5,40,35,box\n")
    assert run("--boxes", file) == 0
    assert (tmp_path / "out/classes.txt").read_text() == "1 box\n"
    file.write_text("file,left,top,right,bottom,class\nthing3/0.jpg,5,5,51,35,box\n")
    with pytest.raises(UserError, match=r"0\.jpg of 'box': \(5.0, 5.0, 51.0, 35.0\) is no box .* within 50x40"):
        run("--boxes", file, "--out", tmp_path / "other")


def test_unreadable_images_are_told_at_the_end(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:400])
    (photos / "text.png").write_text("no image")
    assert run("--html", "--batch", 2) == 1
    printed = capsys.readouterr()
    assert "3 images segmented" in printed.out
    assert "2 images could not be read:" in printed.err
    assert re.search(r"photos/1\.jpg: .*\n.*photos/text\.png: ", printed.err)
    assert {record["file"] for record in manifest(tmp_path)} == {"0.jpg", "2.jpg", "3.jpg"}
    assert "text.png" in (tmp_path / "out/index.html").read_text()
    Image.fromarray(scene()).save(photos / "text.png")
    (photos / "1.jpg").unlink()
    assert run() == 0
    assert "1 images segmented" in capsys.readouterr().out
    assert len({record["file"] for record in manifest(tmp_path)}) == 4


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
    assert run("--overwrite") == 0
    assert lasting(tmp_path) == expected
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


def killed_at(picture: int) -> int:
    """predict.main, killed when it is about to note the so many-th image."""
    append, numbers = Part.append, itertools.count(1)

    def note(part: Part, records: Sequence[Record]) -> None:
        if next(numbers) == picture:
            os.kill(os.getpid(), signal.SIGKILL)
        append(part, records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "append", note)
        return predict.main()


def test_a_killed_run_goes_on(run: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 12)
    monkeypatch.setattr(sys, "argv", arguments(weights, tmp_path))
    picture = int(generator().integers(2, 13))
    (process,), _ = start_processes(1, killed_at, picture)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    noted = [Path(file).stem for file in read_manifest(tmp_path / "out")]
    before = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("masks/*.png")}
    assert len(noted) == picture - 1 and {*noted} < {*before}
    assert run() == 0
    assert {record["file"] for record in manifest(tmp_path)} == {f"{number}.jpg" for number in range(12)}
    assert not list((tmp_path / "out").glob("manifest.part*"))
    after = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("masks/*.png")}
    assert [name for name in before if after[name] == before[name]] == [name for name in before if name in noted]


def masks(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "out/masks").iterdir()}


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
    write_photos(tmp_path / "photos", 12)
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


def test_tiles_of_large_images(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    Image.fromarray(scene(150, 200)).save(tmp_path / "photos/large.png")
    assert run("--tile", 60, "--scale", "auto") == 0
    assert read(tmp_path / "out/masks/large.png").shape == (150, 200)
    with pytest.raises(UserError, match="other weights, settings"):
        run("--tile", 60)
    with pytest.raises(UserError, match="other weights, settings"):
        run()
    for wrong, message in ((["--tile", 1], "--tile 1: is less than"), (["--scale", "auto"], "--scale auto: cuts")):
        with pytest.raises(UserError, match=message):
            run("--out", tmp_path / "other", *wrong)
    assert not (tmp_path / "other").exists()


def test_a_file_that_vanishes(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 2)
    listing = tmp_path / "photos/list.txt"
    listing.write_text("0.jpg\ngone.jpg\n1.jpg\n")
    assert run("--query", listing) == 1
    assert "photos/gone.jpg: no such image" in capsys.readouterr().err
    assert {record["file"] for record in manifest(tmp_path)} == {"0.jpg", "1.jpg"}


def test_thresholds_probabilities_and_counts(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 2)
    assert run("--probabilities", "--no-overlays", "--classes", "thing3") == 0
    assert not (tmp_path / "out/overlays").exists()
    for number in range(2):
        probability = cv2.imread(str(tmp_path / f"out/probabilities/{number}.png"), cv2.IMREAD_UNCHANGED)
        assert probability.dtype == np.uint16
        wrong = (probability > 65535 / 2) != (read(tmp_path / f"out/masks/{number}.png") > 0)
        assert np.abs(probability[wrong] - 65535 / 2).max(initial=0) < 1  # but for rounding
    found = sum(record["class"] is not None for record in manifest(tmp_path))
    counts = f"of 2 images {f'thing3 in {found}, ' if found else ''}nothing in {2 - found}"
    assert counts in capsys.readouterr().out
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert (settings["images"], settings["found"].get("thing3", 0), settings["nothing"]) == (2, found, 2 - found)
    with pytest.raises(UserError, match="other weights, settings"):
        run("--classes", "thing3", "--threshold", "0.999999")
    assert run("--threshold", "0.999999", "--overwrite", "--classes", "thing3") == 0
    assert "nothing in 2" in capsys.readouterr().out
    assert run("--threshold", "0.999999", "--classes", "thing3") == 0  # what was asked for more is there
    with pytest.raises(UserError, match="--threshold 1.0"):
        run("--threshold", 1)


def test_from_the_command_line(weights: Path, support: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "3.jpg").write_text("no image")
    script, *words = arguments(weights, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / script), *words], env=environment, capture_output=True, text=True)
    assert "3 images segmented" in done.stdout
    assert done.returncode == 1 and done.stderr.count("\n") == 2 and "3.jpg" in done.stderr


class Page(HTMLParser):
    """What a browser would show of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_page(run: Any, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (photos / "<script>&'x.jpg").write_bytes((photos / "1.jpg").read_bytes())
    Image.fromarray(scene(300, 900)).save(photos / "wide.jpg")
    assert run("--html") == 0
    page = Page()
    text = (tmp_path / "out/index.html").read_text()
    page.feed(text)
    assert "<script>&'x.jpg" in page.text and "4 images." in page.text
    assert len(page.sources) == 4 and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(text) < 4 * 60_000
    data = base64.b64decode(page.sources[-1].split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (320, 107)
    record = next(record for record in manifest(tmp_path) if record["class"])
    assert f"{record['class']}: {record['area']} pixels" in page.text
    before = (tmp_path / "out/index.html").stat().st_mtime_ns
    assert run("--html") == 0  # with nothing left to segment
    assert (tmp_path / "out/index.html").stat().st_mtime_ns > before


def test_a_folder_of_others_is_left_alone(run: Any, tmp_path: Path, support: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    data = tmp_path / "out"
    (data / "masks").mkdir(parents=True)
    for name in ("masks/0.png", "classes.txt", "masks/.0.png.7.tmp", ".a.b.tmp", "run.json"):
        (data / name).write_text("[]")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="which this program did not write; give another --out"):
            run(*more)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    (support / "thing3/0.png").unlink()
    with pytest.raises(UserError, match="has no mask"):
        run("--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_our_own_temporary_files_go(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    assert run() == 0
    ours, others = tmp_path / "out/masks/.0.png.77.tmp", tmp_path / "out/masks/.mine.tmp"
    ours.touch()
    others.touch()
    assert run("--overwrite") == 0
    assert others.exists() and not ours.exists()


def test_one_run_at_a_time(run: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    assert run() == 0
    with claimed(tmp_path / "out", is_ours), pytest.raises(UserError, match="another run is writing to it"):
        run()
    assert run() == 0


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


def test_names_that_no_terminal_can_show(run: Any, weights: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    for name in ("line\nend.jpg", "\x1b[2J.jpg", os.fsdecode(b"latin\xe9.jpg"), "кот.jpg", "n" * 240 + ".jpg"):
        (photos / name).write_bytes((photos / "0.jpg").read_bytes())
    (photos / "torn\x07.jpg").write_bytes(b"torn")
    command = [sys.executable, str(ROOT / "predict.py"), *arguments(weights, tmp_path, "--html")[1:]]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "torn\\x07.jpg" in done.stderr
    written = [path.name for path in (tmp_path / "out").rglob("*")]
    assert len([name for name in written if name.endswith(".png")]) == 6 and all(map(str.isprintable, written))
    assert run() == 1 and len({record["file"] for record in manifest(tmp_path)}) == 6


def test_folders_that_will_not_do(run: Any, support: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    with pytest.raises(UserError, match="within the support folder"):
        run("--out", support / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: File exists; fix that, then run the same command again"):
        run("--out", tmp_path / "file")
    with pytest.raises(UserError, match="--batch 0"):
        run("--batch", 0)
