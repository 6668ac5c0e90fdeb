"""Segment images of one's own, given a few with masks (docs/own-pictures.md).

    python predict.py --weights exp/.../best_1shot.pth --support support --query photos --out out
    python predict.py --support support --query photos --out out     # the better training-free method
    python predict.py ... --part 3/8     # one of eight processes, anywhere; in the end the same with --finish

Exit codes: 1 when some images could not be read or are missing, 2 for a mistake in what was asked.
"""

import argparse
import os
import re
from pathlib import Path
from typing import get_args

from util.arguments import Parser, folder
from util.errors import UserError, run_main
from util.pixels import MaskKind

OVERLAP = 0.25  # of neighbouring tiles, where nothing else is asked for


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Segment in images what a few support images show.")
    parser.add_argument(
        "--weights", metavar="NAME", help="trained network: name of the zoo, file, folder, or user/name"
    )
    parser.add_argument("--arch", metavar="METHOD", help="a training-free method instead; default: adapt or prototype")
    parser.add_argument("--support", type=folder, required=True, metavar="DIR", help="name.jpg with name.png, or ...")
    parser.add_argument(
        "--query", nargs="+", required=True, metavar="DIR", help="images to segment; or a list of them, *.txt"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: what training left by the weights, or config/predict.yaml"
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="CSV: file,left,top,right,bottom[,class]")
    parser.add_argument("--mask", choices=get_args(MaskKind), help="what masks are, where that cannot be seen")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="look for these only: names, or values in masks")
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="probability that marks an object; default: as the supports say"
    )
    parser.add_argument("--probabilities", action="store_true", help="write these too, as PNG of 16 bits")
    parser.add_argument("--no-overlays", action="store_true", help="write masks alone")
    parser.add_argument("--batch", type=int, metavar="N", help="images per pass through the network (CPU 1, GPU 16)")
    parser.add_argument("--tile", type=int, metavar="SIDE", help="cut larger images into squares of so many pixels")
    parser.add_argument(
        "--overlap", type=float, default=OVERLAP, metavar="P", help="part that neighbouring tiles share"
    )
    parser.add_argument("--scale", choices=["auto"], help="cut supports like tiles, for objects of the same scale")
    parser.add_argument("--bands", metavar="N,...", help="of TIFF files: one band, or those for red, green and blue")
    parser.add_argument("--page", type=int, metavar="N", help="of TIFF files that have several")
    parser.add_argument("--part", metavar="I/N", help="do a share only; slurm: from an array's task")
    parser.add_argument("--finish", action="store_true", help="join all parts and name what is missing")
    parser.add_argument("--verify", action="store_true", help="read what is done, and do again what has changed")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    parser.add_argument("--no-expectation", action="store_true", help="do not try the supports on each other first")
    parser.add_argument("--curve", action="store_true", help="write the IoU of the method in use by number of masks")
    parser.add_argument("--html", action="store_true", help="write index.html, one page with all thumbnails")
    parser.add_argument(
        "--format", default="", metavar="NAME,...", help="write these too: coco, labelme, yolo, geojson, geotiff, csv"
    )
    parser.add_argument("--metres", action="store_true", help="an image without a scale in metres is a mistake")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 ...; default: the config's")
    parser.add_opts("key value ..., instead of the config's")
    arguments = parser.parse_args()
    arguments.part = arguments.part and parse_part(arguments.part)
    check_arguments(arguments)
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """UserError for what cannot go together, or is no value for an option."""
    for name in ("batch", "tile", "page"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: should be at least 1")
    if arguments.threshold is not None and not 0 < arguments.threshold < 1:
        raise UserError(f"--threshold {arguments.threshold}: should be between 0 and 1")
    if arguments.overlap != OVERLAP and not arguments.tile:
        raise UserError(f"--overlap {arguments.overlap}: is one of tiles; give --tile SIDE, too")
    if arguments.scale and not arguments.tile:
        raise UserError("--scale auto: cuts supports like tiles; give --tile SIDE, too")
    if arguments.finish and (arguments.part or arguments.overwrite):
        raise UserError("--finish joins what all parts have done; leave --part and --overwrite out")
    if arguments.out.resolve().is_relative_to(arguments.support.resolve()):
        raise UserError(f"--out {arguments.out}: is within the support folder; give another folder")


def parse_part(text: str) -> tuple[int, int]:
    """Number and count of a share, from 1/N to N/N; `slurm` takes both from the array that this task belongs to."""
    if text == "slurm":
        names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "STEP", "COUNT")]
        try:
            task, first, step, count = (int(os.environ[name]) for name in names)
        except (KeyError, ValueError):
            raise UserError("--part slurm: is no task of a Slurm array; submit it by sbatch --array=1-N") from None
        text = f"{(task - first) // max(1, step) + 1}/{count}"
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {text}: should be a number and how many there are, from 1/N to N/N")
    return int(match[1]), int(match[2])


def main() -> int:
    """The entry point."""
    arguments = parse_arguments()
    from prediction.command import run  # after the arguments, as importing PyTorch takes seconds

    return run(arguments)


if __name__ == "__main__":
    run_main(main)
