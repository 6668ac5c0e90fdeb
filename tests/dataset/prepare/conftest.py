"""Raw data sets and a server to fetch them from."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from tests.dataset.prepare.trees import Raw, make_coco, make_pascal


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"np.random.default_rng({seed})")
    return np.random.default_rng(seed)


@pytest.fixture
def raw_pascal(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Raw:
    """VOC and SBD archives in tmp_path/archives, passing for the official ones."""
    raw = make_pascal(tmp_path / "raw", tmp_path / "archives", rng)
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", md5(raw.archives[0]))
    monkeypatch.setattr(SBDataset, "md5", md5(raw.archives[1]))
    return raw


@pytest.fixture
def raw_coco(tmp_path: Path, rng: np.random.Generator) -> Raw:
    """COCO archives in tmp_path/archives."""
    return make_coco(tmp_path / "raw", tmp_path / "archives", rng)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@dataclass
class Server:
    """A server of a folder's files, which breaks off or ignores ranges when told to, and remembers what was asked."""

    folder: Path
    url: str = ""
    break_after: list[int] = field(default_factory=list)  # bytes, for each of the next answers; then no more breaks
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    state = Server(tmp_path / "archives")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            path = state.folder / self.path.rsplit("/", 1)[-1]
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and state.ranges else 0
            if wanted and state.ranges and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if wanted and state.ranges else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop = state.break_after.pop(0) if state.break_after else len(content)
            self.wfile.write(content[start : start + stop])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/mirror"
        yield state
        http.shutdown()
        thread.join()
