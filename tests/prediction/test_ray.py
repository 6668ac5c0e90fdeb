"""A local Ray cluster: a worker that is killed, and an S3 server on this machine. `make test-ray` runs these."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from prediction.choice import Source, open_predictor
from prediction.predictor import Prediction, Predictor
from tests.processes import free_port
from tests.toy import draw_image, generator
from util.config import Config
from util.errors import UserError

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")
pq = pytest.importorskip("pyarrow.parquet")
IMAGES = 48
Images = list[tuple[np.ndarray, np.ndarray]]
ROOT = Path(__file__).parents[2]


class SlowPredictor(Predictor):
    """Takes its time, so that a worker can be killed in between."""

    def predict_batch(self, images: Any) -> list[Prediction]:
        time.sleep(0.2)
        return super().predict_batch(images)


def build(cfg: Config, weights: Path, folder: Path) -> Predictor:
    """A predictor whose worker leaves its process's number."""
    (folder / str(os.getpid())).touch()
    return SlowPredictor.from_checkpoint(cfg, weights, "cpu")


@pytest.fixture
def cluster() -> Iterator[None]:
    """Room for two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def images() -> Images:
    return [draw_image(generator(), 40, 50, [3]) for _ in range(IMAGES)]


def as_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_killed_worker_loses_nothing_and_does_nothing_twice(
    cluster: None, experiment: tuple[Config, Path], images: Images, tmp_path: Path
) -> None:
    from prediction.ray import RayJob, Workers, files_done, list_images, predict_files

    photos, workers, out = (tmp_path / name for name in ("photos", "workers", "out"))
    workers.mkdir()
    for number, (image, _) in enumerate(images):
        path = photos / f"{number % 3}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_jpeg(image))
    (photos / "bad.jpg").write_bytes(b"x" * 99)
    support = {"thing": ([images[0][0]], [(images[0][1] == 3).astype(np.uint8)])}
    job = RayJob(str(photos), str(out), partial(build, *experiment, workers), support, {"thing": 5})
    killed: list[int] = []

    def kill() -> None:
        while len(list(workers.iterdir())) < 2 or len(list(out.glob("masks/*/*.png"))) < IMAGES // 4:
            time.sleep(0.05)
        killed.append(int(next(workers.iterdir()).name))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    files = list_images(str(photos))
    answers = list(predict_files(job, files, Workers(2, 2), 2))
    thread.join(60)
    assert killed and len(list(workers.iterdir())) == 3  # another took its place
    assert sum(count for count, _ in answers) == IMAGES + 1
    complaints = [line for _, lines in answers for line in lines]
    assert len(complaints) == 1 and complaints[0].startswith("bad.jpg: not a readable image")
    rows = pq.read_table(out / "manifest").to_pylist()
    assert sorted(row["file"] for row in rows) == sorted(set(files) - {"bad.jpg"}) == sorted(files_done(str(out)))
    predictor = open_predictor(Source(*experiment, is_usual=False), "cpu")
    predictor.set_support(support)
    for row in rows[:5]:
        prediction = predictor.predict(photos / row["file"])
        mask = np.asarray(Image.open(out / row["mask"]))
        assert np.array_equal(mask, prediction.mask * 5) and row["area"] == (mask == 5).sum()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server with a bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=free_port(), verbose=False)
    server.start()
    known = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port()), "key": "test", "secret": "test"}
    monkeypatch.setitem(fsspec.config.conf, "s3", known)
    for name, value in known.items():  # of processes that are started
        monkeypatch.setenv(f"FSSPEC_S3_{name.upper()}", value)
    files = fsspec.filesystem("s3")
    files.mkdir("bucket")
    yield files
    files.clear_instance_cache()
    server.stop()


def test_from_a_bucket_to_a_bucket(
    bucket: Any, experiment: tuple[Config, Path], images: Images, tmp_path: Path
) -> None:
    from prediction.ray import claim_results, list_images

    with pytest.raises(UserError, match=r"s3://absent/photos: cannot be read .*; check address, network and rights"):
        list_images("s3://absent/photos")
    with pytest.raises(UserError, match=r"s3://bucket/photos: no images there"):
        list_images("s3://bucket/photos")
    with pytest.raises(UserError, match=r"s3://absent/results: cannot be written"):
        claim_results("s3://absent/results", {})
    Image.fromarray(images[0][0]).save(tmp_path / "a.png")
    Image.fromarray((images[0][1] == 3).astype(np.uint8)).save(tmp_path / "a_mask.png")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        words = ["--weights", str(experiment[1]), "--support", str(tmp_path), "--batch", "2", *more]
        places = ["--query", "s3://bucket/photos", "--out", "s3://bucket/results"]
        command = [sys.executable, "-m", "tools.predict_ray", *words, *places]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)

    for number, (image, _) in enumerate(images[:5]):
        bucket.pipe_file(f"bucket/photos/{number}.jpg", as_jpeg(image))
    first = run()
    assert first.returncode == 0 and "5 images segmented" in first.stdout, first.stderr[-2000:]
    bucket.pipe_file("bucket/photos/new.jpg", as_jpeg(images[5][0]))
    again = run()
    assert "6 images, 5 of them done before" in again.stdout and "1 images segmented" in again.stdout
    rows = [row for part in bucket.glob("bucket/results/manifest/*") for row in read_rows(bucket.open(part))]
    assert sorted({row["file"] for row in rows}) == [*(f"{number}.jpg" for number in range(5)), "new.jpg"]
    with bucket.open(f"bucket/results/{rows[0]['mask']}") as file:
        assert np.asarray(Image.open(file)).shape == (40, 50)
    other = run("--opts", "val_size", "41")
    assert other.returncode == 2 and "holds what other weights, settings" in other.stderr


def read_rows(file: Any) -> list[dict[str, Any]]:
    return list(pq.read_table(file).to_pylist())
