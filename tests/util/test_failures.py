"""Which failures of the machine become a line, and which stay what they are."""

import errno

import cv2
import pytest
import torch
import torch.distributed as dist

from util.errors import UserError
from util.failures import RESUME, explain, explain_errors


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "state.pth"), ["state.pth: No space", "make room", RESUME]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ["cannot write: Disk quota", "make room"]),
        (PermissionError(errno.EACCES, "Permission denied", "exp/log.txt"), ["exp/log.txt: Permission denied", "fix"]),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), ["CUDA out of memory", "lower batch_size"]),
        (RuntimeError("DataLoader worker (pid 7) is killed"), ["a loader worker died", "loader_workers"]),
        (dist.DistBackendError("NCCL error. Advice that is long"), ["lost contact", "NCCL error", RESUME]),
        (RuntimeError("[/x.cc:1] Connection closed by peer [1.2.3.4]: 5"), ["lost contact", "Connection closed"]),
        (cv2.error("OpenCV(5) /x.cc:7: error: (-4:Insufficient memory) Failed to allocate"), ["not enough memory for"]),
        (UserError("Traceback ...\nutil.errors.UserError: a.jpg: no such image\n"), ["a.jpg: no such image"]),
    ],
)
def test_one_line(error: Exception, parts: list[str]) -> None:
    line = explain(error)
    assert line and "\n" not in line and all(part in line for part in parts), line
    assert "Advice" not in line and "/x.cc" not in line


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError("odd"), cv2.error("(-215)"), ValueError("of a value")]
)
def test_errors_of_the_program_stay(error: Exception) -> None:
    assert explain(error) is None
    with pytest.raises(type(error)) as caught, explain_errors():
        raise error
    assert caught.value is error


def test_how_to_go_on() -> None:
    with pytest.raises(UserError, match="make room and run it again$"), explain_errors("run it again"):
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")
