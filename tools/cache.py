"""What this program has kept to save time: where, how many files, how large; `--clear` removes it.

    python -m tools.cache [--crops exp/cached_crops] [--clear]

Nothing of it is needed: masks are scanned and crops computed again where they are missing.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from dataset.cached_crops import crop_files
from dataset.scan import counts_folder
from util.errors import run_main


def main(words: Sequence[str] | None = None) -> None:
    """The entry point."""
    parser = ArgumentParser(prog="python -m tools.cache", description="Show or clear what is kept to save time.")
    parser.add_argument("--crops", type=Path, default=Path("exp/cached_crops"), help="the config's crop_folder")
    parser.add_argument("--clear", action="store_true", help="remove the files")
    arguments = parser.parse_args(words)
    counts, crops = counts_folder(), arguments.crops
    places = {"mask counts": (counts, list(counts.glob("*.json"))), "cached crops": (crops, crop_files(crops))}
    for name, (folder, files) in places.items():
        size = sum(path.stat().st_size for path in files)
        print(f"{name:<14}{len(files):>8} files{size / 1e6:>12.1f} MB  {folder}")
        if arguments.clear:
            remove(folder, files)
            print(f"{'':<14}removed")


def remove(folder: Path, files: Sequence[Path]) -> None:
    """Remove files below a folder, and the folders below it that become empty."""
    for path in files:
        path.unlink(missing_ok=True)
    parents = {parent for path in files for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, reverse=True):  # the innermost first
        if not any(parent.iterdir()):
            parent.rmdir()


if __name__ == "__main__":
    run_main(main)
