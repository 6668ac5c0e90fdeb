"""Where a run of either training stage keeps its files."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The files of one run; `tag` tells apart runs of different shots that share a folder."""

    folder: Path
    best: Path  # weights for whoever comes next
    tag: str = ""
    numbered: str = ""  # begins the best weights' second name, {numbered}_epoch_{e}_{mIoU}.pth, e from 0; empty: none

    @property
    def snapshots(self) -> Path:
        """Folder of snapshots and best weights."""
        return self.folder / "snapshot"

    @property
    def snapshot_name(self) -> str:
        """What the names of snapshots begin with."""
        return f"state{self.tag}"

    def file(self, name: str) -> Path:
        """A file of the run's own, such as result.json or result_train5.json."""
        path = self.folder / name
        return path.with_stem(path.stem + self.tag)

    def numbered_best(self, position: float, miou: float) -> Path:
        """The second name of the best weights, validated after so many epochs."""
        return self.snapshots / f"{self.numbered}_epoch_{position - 1:g}_{miou:.4f}.pth"


def run_name(shot: int) -> str:
    """What a training with so many shots is called in the names of files: train_epoch_..., train5_epoch_..."""
    return "train" if shot == 1 else f"train{shot}"


def run_tag(shot: int) -> str:
    """What the names of its other files end in, as runs of all shots share a folder: nothing, or _train5."""
    return "" if shot == 1 else f"_{run_name(shot)}"
