"""Fetching archives over HTTP so that an interrupted transfer goes on where it stopped."""

import hashlib
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from util.errors import UserError, first_line

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 60  # seconds
HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", re.IGNORECASE)
AGENT = "Mozilla/5.0 (compatible; HMNet)"  # share links refuse programs that do not look like a browser

BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, ssl.SSLError, TimeoutError)


def download(url: str, path: Path, pause: float = 2.0) -> None:
    """Fetch `url` into `path`, through `path`.part, which a later call goes on with when this one is interrupted.

    Redirects are followed with the cookies that they set. A broken connection is tried again after `pause` seconds,
    five times without progress at most. UserError when that fails, the server refuses, or answers with a web page.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is no http address; give --mirror as http://HOST/FOLDER")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures = 0
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    opener.addheaders = [("User-Agent", AGENT)]
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(opener, url, part, before)
            break
        except UserError:
            raise
        except (*BROKEN, ValueError) as error:  # ValueError: a server leads to an address that is none
            refused = isinstance(error, ValueError) or 400 <= getattr(error, "code", 0) < 500
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if refused or failures == ATTEMPTS:
                said = first_line(error)
                raise UserError(f"{url} could not be fetched: {said}; run again to go on, or give --mirror") from None
            time.sleep(pause)
    part.replace(path)


def _transfer(opener: urllib.request.OpenerDirector, url: str, part: Path, start: int) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":  # nothing is left to send
            return
        part.unlink()  # longer than the file on the server: not a part of it
        response = opener.open(url, timeout=TIMEOUT)
    with response:
        length = response.length  # what is still to come; None if the server does not say
        block = response.read(CHUNK)
        if response.headers.get_content_type() == "text/html" or (not start and HTML.match(block)):
            file = part.with_suffix("")
            raise UserError(f"{url} is a web page, no file: open it in a browser, save the file as {file}, run again")
        start = start if response.status == 206 and part.exists() else 0
        if start and not response.headers.get("Content-Range", f"bytes {start}-").startswith(f"bytes {start}-"):
            raise ConnectionError("the server sent another range than was asked for")
        total = None if length is None else start + length
        with (
            part.open("ab" if start else "wb") as output,
            tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, mininterval=0.5) as progress,
        ):
            while block:
                output.write(block)
                progress.update(len(block))
                block = response.read(CHUNK)
            if total is not None and output.tell() != total:
                raise ConnectionError(f"the connection ended after {output.tell()} of {total} bytes")


def verify_checksum(path: Path, expected: str, algorithm: str = "md5") -> None:
    """Raise UserError unless the file's checksum, in hex digits, begins with `expected`."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(desc=f"checksum {path.name}", total=path.stat().st_size, unit="B", unit_scale=True) as progress,
    ):
        while block := file.read(CHUNK):
            digest.update(block)
            progress.update(len(block))
    if not digest.hexdigest().startswith(expected):
        anew = ", or give --no-checksum if it was packed anew" if algorithm == "md5" else ""
        raise UserError(
            f"{path} is damaged or not the official file: {algorithm.upper()} {digest.hexdigest()}, not {expected}; "
            f"delete it and fetch it again{anew}"
        )
