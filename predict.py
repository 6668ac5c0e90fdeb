"""Segment images of one's own, given a few with masks (docs/own-pictures.md).

    python predict.py --weights exp/.../best_1shot.pth --support support --query photos --out out
    python predict.py --support support --query photos --out out     # without a trained network: `--arch adapt`
    torchrun --nproc_per_node 4 predict.py ...

Exit codes: 1 when some images could not be read, 2 for a mistake in what was asked.
"""

import argparse
from pathlib import Path
from typing import get_args

from util.arguments import Parser
from util.errors import UserError, run_main
from util.pixels import MaskKind

DEFAULT_METHOD = "adapt"  # without weights: fits itself to the supports


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Segment in images what a few support images show.")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint of a trained network")
    parser.add_argument("--arch", metavar="METHOD", help="a training-free method instead (adapt), such as prototype")
    parser.add_argument("--support", type=Path, required=True, metavar="DIR", help="name.jpg with name.png, or ...")
    parser.add_argument("--query", nargs="+", required=True, metavar="DIR_OR_GLOB", help="images to segment")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="default: what training left by the weights, or config/predict.yaml"
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="CSV: file,left,top,right,bottom[,class]")
    parser.add_argument("--mask", choices=get_args(MaskKind), help="what masks are, where that cannot be seen")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="look for these only: names, or values in masks")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images per pass through the network (1)")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done")
    parser.add_argument("--html", action="store_true", help="write index.html, one page with all thumbnails")
    parser.add_argument(
        "--format", default="", metavar="NAME,...", help="write these too: coco, labelme, yolo, geojson, csv"
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 ...; default: the config's")
    parser.add_opts("key value ..., instead of the config's")
    arguments = parser.parse_args()
    if arguments.weights and arguments.arch:
        raise UserError("give either --weights FILE, a trained network, or --arch METHOD, a training-free method")
    if not arguments.weights:
        arguments.arch = arguments.arch or DEFAULT_METHOD
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch}: should be at least 1")
    if arguments.out.resolve().is_relative_to(arguments.support.resolve()):
        raise UserError(f"--out {arguments.out}: is within the support folder; give another folder")
    return arguments


def main() -> int:
    """The entry point."""
    arguments = parse_arguments()
    from prediction.command import run  # after the arguments, as importing PyTorch takes seconds

    return run(arguments)


if __name__ == "__main__":
    run_main(main)
