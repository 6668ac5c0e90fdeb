"""What the items share: where they run, how they say that something is wrong, and that there is nothing to check."""

from typing import NamedTuple

import torch


class CheckSetting(NamedTuple):
    """Where the items run; on a CPU they take small shapes."""

    device: torch.device

    @property
    def is_small(self) -> bool:
        """Whether this is a rehearsal."""
        return self.device.type == "cpu"


class NothingToCheckError(Exception):
    """The item does not apply to this machine; the message says why."""


class CheckError(Exception):
    """What was found is not what should be."""


def check(good: bool, message: str) -> None:
    """CheckError with this message unless `good`."""
    if not good:
        raise CheckError(message)
