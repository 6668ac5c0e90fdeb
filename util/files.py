"""Writing files so that a reader never sees half of one."""

import os
from pathlib import Path


def write_aside(path: Path, data: bytes | str) -> None:
    """Write to a temporary neighbour, then rename over `path`; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
