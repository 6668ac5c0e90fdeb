"""predict.py on a Ray cluster (docs/other-tools.md), from and to any address that fsspec knows.

    python -m tools.predict_ray --weights FILE --support DIR --query s3://bucket/photos --out s3://bucket/results
    ray job submit --working-dir . -- python -m tools.predict_ray ... --workers 1:32 --gpus 1

Exit codes: 1 when some images could not be read, 2 for a mistake in what was asked.
"""

import argparse
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from util.arguments import Parser, folder
from util.errors import UserError, first_line, printable, run_main
from util.pixels import MaskKind


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Segment images on a Ray cluster.")
    parser.add_argument("--weights", metavar="NAME", help="trained network, as of predict.py, on all machines")
    parser.add_argument("--arch", metavar="METHOD", help="a training-free method instead (adapt)")
    parser.add_argument(
        "--support", type=folder, required=True, metavar="DIR", help="as of predict.py, on this machine"
    )
    parser.add_argument(
        "--query", required=True, metavar="ADDRESS", help="folder of images, such as s3://bucket/folder"
    )
    parser.add_argument("--out", required=True, metavar="ADDRESS", help="folder to write to")
    parser.add_argument("--config", type=Path, metavar="FILE", help="as of predict.py")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="as of predict.py")
    parser.add_argument("--mask", choices=get_args(MaskKind), help="as of predict.py")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="as of predict.py")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images that a worker is given at once (16)")
    parser.add_argument("--workers", default="1", metavar="N[:M]", help="how many, or from N to M as there is work (1)")
    parser.add_argument("--cpus", type=float, default=1, metavar="N", help="cores of each worker (1)")
    parser.add_argument("--gpus", type=float, default=0, metavar="N", help="GPUs of each worker, also parts of one (0)")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the cluster; default: this one, or this machine")
    parser.add_opts("key value ..., instead of the config's")
    arguments = parser.parse_args()
    counts = arguments.workers.split(":")
    if not all(word.isdecimal() for word in counts) or len(counts) > 2 or not 0 < int(counts[0]) <= int(counts[-1]):
        raise UserError(f"--workers {arguments.workers}: should be a number, or two such as 1:8")
    if arguments.batch < 1 or arguments.cpus < 0 or arguments.gpus < 0:
        raise UserError("--batch should be at least 1, --cpus and --gpus at least 0")
    arguments.workers = int(counts[0]), int(counts[-1])
    return arguments


def main() -> int:
    """The entry point."""
    arguments = parse_arguments()
    if find_spec("ray") is None:
        raise UserError("tools.predict_ray: needs Ray; install it by pip install 'hmnet[ray]'")
    import ray
    from tqdm import tqdm

    from prediction.choice import find_source, open_predictor
    from prediction.ray import RayJob, Workers, claim_results, files_done, list_images, predict_files
    from prediction.settings import fingerprint
    from prediction.support import read_support, select
    from util.image import read_image

    source = find_source(arguments.weights, arguments.arch, arguments.config, arguments.opts)
    source = source._replace(weights=source.weights and source.weights.resolve())
    support = read_support(arguments.support, arguments.boxes, arguments.mask)
    support = select(support, arguments.classes) if arguments.classes else support
    images = list_images(arguments.query)
    claim_results(arguments.out, fingerprint(source, support, Path()) | {"query": arguments.query})
    left = sorted(set(images) - files_done(arguments.out))
    print(f"{len(images)} images, {len(images) - len(left)} of them done before")
    device = "cuda" if arguments.gpus else "cpu"
    shown = {item.name: ([read_image(path) for path in item.images], item.masks) for item in support}
    values = {item.name: item.value for item in support}
    build = partial(open_predictor, source, device)
    build().set_support(shown)  # a mistake in weights or supports is said before the work
    complaints: list[str] = []
    try:
        ray.init(address=arguments.address, include_dashboard=False, log_to_driver=False)
    except Exception as error:  # of the network or the machine: many classes
        raise UserError(f"Ray: {first_line(error)}; check --address, or try again when the machine is free") from None
    workers = Workers(arguments.workers[0], arguments.workers[1], arguments.cpus, arguments.gpus)
    with tqdm(total=len(left), unit="image", disable=None) as bar:
        job = RayJob(arguments.query, arguments.out, build, shown, values)
        for count, lines in predict_files(job, left, workers, arguments.batch) if left else ():
            bar.update(count)
            complaints += lines
    print(f"{len(left) - len(complaints)} images segmented, see {printable(arguments.out)}")
    if complaints:
        lines = [f"{len(complaints)} images could not be read:", *map(printable, sorted(complaints))]
        print("\n".join(lines), file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    run_main(main)
