"""Many images on a Ray cluster: a worker holds a predictor, the program that started them writes the manifest.

What a worker leaves when it dies is done again by another; an image is in the manifest once. Images, masks and manifest
are at any address that fsspec knows, such as s3://bucket/folder; workers need the same code, weights and rights.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from time import perf_counter
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from fsspec.implementations.local import LocalFileSystem

from prediction.objects import object_scores
from prediction.predictor import Prediction, Predictor
from util.errors import UserError, first_line
from util.files import own_name
from util.image import RGB, SUFFIXES, read_image
from util.visualize import encode_index

ROWS = 10_000  # of a file of the manifest
READERS = 8  # images that a worker reads or writes at once
SCHEMA = pa.schema(
    {
        **{"file": pa.string(), "class": pa.string(), "value": pa.int64(), "area": pa.int64(), "score": pa.float64()},
        **{"scores": pa.list_(pa.float64()), "box": pa.list_(pa.int64()), "found": pa.int64(), "mask": pa.string()},
        **{"seconds": pa.float64(), "error": pa.string()},
    }
)
Row = dict[str, Any]


@dataclass(frozen=True)
class RayJob:
    """What every worker is told."""

    query: str  # address of the folder of images
    out: str  # of the results
    build: Callable[[], Predictor]
    support: Mapping[str, tuple[list[RGB], list[Any]]]  # images and masks of each class, as `set_support` takes them
    values: Mapping[str, int]  # by which masks mark each class


@dataclass(frozen=True)
class Workers:
    """How many there are, and what each takes; between `least` and `most` as there is work and room."""

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0


class Segmenter:
    """A worker: segments batches of files, writes their masks and returns rows of the manifest."""

    def __init__(self, job: RayJob) -> None:
        self.job, self.predictor, self.pool = job, job.build(), ThreadPoolExecutor(READERS)
        self.predictor.set_support(dict(job.support))
        self.values = np.array([0, *(job.values[name] for name in job.support)], np.uint8)

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        before, files = perf_counter(), [str(file) for file in batch["file"]]
        read = dict(zip(files, self.pool.map(self._read, files), strict=True))
        images = {file: image for file, image in read.items() if not isinstance(image, str)}
        predictions = self.predictor.predict_batch(list(images.values())) if images else []
        written = list(self.pool.map(self._write, images, predictions))
        shared = {"seconds": round((perf_counter() - before) / len(files), 4)}
        rows = [{**row, **shared} for rows in written for row in rows]
        rows += [{"file": file, "error": error} for file, error in read.items() if isinstance(error, str)]
        return pa.Table.from_pylist(rows, SCHEMA)

    def _read(self, file: str) -> RGB | str:
        """The image, or why there is none."""
        files, root = open_address(self.job.query)
        try:
            source = io.BytesIO(files.cat_file(f"{root}/{file}"))
            source.name = file
            return read_image(source)
        except UserError as error:
            return str(error)
        except Exception as error:  # of any package behind fsspec
            return f"{file}: cannot be read ({first_line(error)})"

    def _write(self, file: str, prediction: Prediction) -> list[Row]:
        files, root = open_address(self.job.out)
        mask, scores = mask_name(file), object_scores(prediction.mask, prediction.class_probabilities)
        files.pipe_file(f"{root}/{mask}", encode_index(self.values[prediction.mask]))
        found = prediction.found()
        shared = {"file": file, "mask": mask, "found": len(found)}
        rows = [
            {**shared, "class": item.name, "value": self.job.values[item.name], "area": item.area, "score": item.score}
            | {"scores": scores[prediction.names.index(item.name) + 1], "box": list(item.box)}
            for item in found
        ]
        return rows or [{**shared, "area": 0, "score": 0.0}]


def predict_files(job: RayJob, files: Sequence[str], workers: Workers, batch: int) -> Iterator[tuple[int, list[str]]]:
    """Segment files below the query's address, and write masks and manifest; what is done stays if the run is stopped.

    Yields now and then how many images came, and a line for each that could not be read.
    """
    items = ray.data.from_items([{"file": file} for file in files], override_num_blocks=-(-len(files) // batch))
    segmented = items.map_batches(
        Segmenter,
        fn_constructor_args=(job,),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(min_size=workers.least, max_size=workers.most),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    rows: list[Row] = []
    for table in segmented.iter_batches(batch_size=None, batch_format="pyarrow"):
        new: list[Row] = table.to_pylist()
        yield len({row["file"] for row in new}), [row["error"] for row in new if row["error"]]
        rows += [row for row in new if not row["error"]]
        if len(rows) >= ROWS:
            _write_rows(job.out, rows)
            rows = []
    _write_rows(job.out, rows)


def list_images(address: str) -> list[str]:
    """The images below an address, hidden ones not; UserError where it cannot be read or has none."""
    try:
        files, root = open_address(address)
        found = [str(PurePosixPath(path).relative_to(root)) for path in files.find(root)]
    except Exception as error:  # of any package behind fsspec
        raise UserError(f"{address}: cannot be read ({first_line(error)}); check address, network and rights") from None
    images = [file for file in found if PurePosixPath(file).suffix.lower() in SUFFIXES and "/." not in f"/{file}"]
    if not images:
        raise UserError(f"{address}: no images there; check the address")
    return sorted(images)


def files_done(out: str) -> set[str]:
    """The images in a manifest."""
    files, root = open_address(out)
    parts = files.glob(f"{root}/manifest/*.parquet")
    return {file for part in parts for file in pq.read_table(files.open(part), columns=["file"])["file"].to_pylist()}


def claim_results(out: str, settings: Mapping[str, Any]) -> None:
    """Write down what results depend on; UserError where there are others, or the address cannot be written to."""
    try:
        files, root = open_address(out)
        known = json.loads(files.cat_file(f"{root}/run.json")) if files.exists(f"{root}/run.json") else settings
        files.pipe_file(f"{root}/run.json", (json.dumps(known, indent=1) + "\n").encode())
    except Exception as error:  # of any package behind fsspec
        raise UserError(f"{out}: cannot be written ({first_line(error)}); check address, network and rights") from None
    if known != settings:
        raise UserError(f"{out}: holds what other weights, settings, supports or queries gave; give another --out")


def open_address(address: str) -> tuple[Any, str]:
    """A file system and the path in it; folders of a local one are made."""
    files, root = fsspec.url_to_fs(address)
    if isinstance(files, LocalFileSystem):
        files.auto_mkdir = True
    return files, root.rstrip("/")


def mask_name(file: str) -> str:
    """What an image's mask is called below the results' address: like the image, so that no two of them meet."""
    own = own_name(file)
    return f"masks/{own}.png" if own == file else f"masks/{own}_{sha256(file.encode()).hexdigest()[:8]}.png"


def _write_rows(out: str, rows: list[Row]) -> None:
    if rows:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA).drop_columns("error"), buffer)
        files, root = open_address(out)
        files.pipe_file(f"{root}/manifest/{uuid4().hex}.parquet", buffer.getvalue())
