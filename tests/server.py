"""A server on this machine that behaves as those that files are fetched from."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COOKIE = "visitor=1"


@dataclass
class Server:
    """A server of a folder's files, which breaks off or ignores ranges when told to, and remembers what was asked.

    An address with `download=1` is that of a shared file: it sets a cookie and leads to the file, for which others get
    a web page.
    """

    folder: Path
    url: str = ""
    break_after: list[int] = field(default_factory=list)  # bytes, for each of the next answers; then no more breaks
    ranges: bool = True
    surplus: int = 0  # bytes that are announced but never come
    odd: dict[str, tuple[int, dict[str, str], bytes]] = field(
        default_factory=dict
    )  # answers to the last part of a path
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range header


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder while the block runs."""
    state = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            address, _, query = self.path.partition("?")
            if answer := state.odd.get(address.rsplit("/", 1)[-1]):
                self.answer(*answer)
                return
            if "download=1" in query:
                self.answer(302, {"Location": address.replace("share", "private"), "Set-Cookie": f"{COOKIE}; Path=/"})
                return
            if ("share" in address or "private" in address) and COOKIE not in self.headers.get("Cookie", ""):
                self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, b"<!DOCTYPE html><p>Sign in</p>")
                return
            path = state.folder / address.rsplit("/", 1)[-1]
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and state.ranges else 0
            if start and start >= len(content):
                self.answer(416, {"Content-Range": f"bytes */{len(content) + state.surplus}"})
                return
            stop = start + (state.break_after.pop(0) if state.break_after else len(content))
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            length = {"Content-Length": str(len(content) - start + state.surplus)}
            self.answer(206 if start else 200, {"Content-Range": place, **length}, content[start:stop])

        def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        state.url = f"http://127.0.0.1:{http.server_port}/mirror"
        yield state
        http.shutdown()
        thread.join()
