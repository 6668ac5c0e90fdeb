"""Prepare data sets, benchmarks, public lists and weights: `python -m tools.prepare --help`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dataset.benchmarks.table import BENCHMARKS
from dataset.prepare.archive import Source
from dataset.prepare.benchmarks import RECIPES, prepare_benchmark
from dataset.prepare.check import Finding, check
from dataset.prepare.custom import prepare_custom
from dataset.prepare.known import LIST_SIZES
from dataset.prepare.lists import LISTS, fetch_lists, list_paths
from dataset.prepare.official import prepare_coco, prepare_pascal
from dataset.scan import scan_masks
from tools.published import PUBLICATIONS, unpack_published
from tools.released import fetch, fetch_torchvision
from util.arguments import Parser
from util.config import Config, load_config
from util.errors import UserError, run_main
from util.mask import MaskKind
from util.processors import processor_count

CONFIGS = Path(__file__).resolve().parent.parent / "config"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (`words`, or the process's own)."""
    parser = Parser(prog="python -m tools.prepare", description="Prepare data sets, look at weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("pascal", "PASCAL-5i from VOC 2012 and SBD"), ("coco", "COCO-20i from MS COCO 2014")):
        _describe_official(commands.add_parser(name, help=f"build {what}; can be run again, does only what is left"))
    _describe_custom(
        commands.add_parser("custom", help="a data set of your own: VOC layout, COCO JSON or LabelMe JSON")
    )
    for name in RECIPES:
        build = commands.add_parser(name, help="the benchmark, from archives that you have (docs/benchmarks.md)")
        build.add_argument("--archives", type=Path, metavar="PATH", help="the archive, or a folder of its archives")
        build.add_argument("--root", type=Path, help=f"folder to build in; default: {BENCHMARKS[name].ROOT}")
        _add_workers(build)
    _describe_lists(commands.add_parser("lists", help="public lists of a benchmark, by which its episodes are drawn"))
    what = "verify lists, files and known sizes; exit code 1 if anything is wrong"
    _describe_check(commands.add_parser("check", help=what))
    weights = commands.add_parser("weights", help="bring released weights to where the configs look for them")
    _describe_weights(weights)
    what = "which weights are present and fit; exit code 1 if one does not"
    for command in (weights, commands.add_parser("check-weights", help=what)):
        command.add_argument(
            "--method", choices=["hmnet", *PUBLICATIONS], default="hmnet", help="whose weights (hmnet)"
        )
        command.add_argument("--config", type=Path, help="look at this experiment's only")
        _add_overrides(command)
    return parser.parse_args(words)


def _describe_official(parser: Parser) -> None:
    parser.add_argument("--root", type=Path, help="folder to build in; default: the config's data_root")
    parser.add_argument("--archives", type=Path, help="folder of the official archives; default: ROOT/archives")
    parser.add_argument("--download", action="store_true", help="fetch archives that are missing")
    parser.add_argument("--mirror", metavar="URL", help="folder to fetch from instead of the official hosts")
    parser.add_argument("--no-checksum", action="store_true", help="accept archives that were packed anew")
    _add_workers(parser)


def _describe_custom(parser: Parser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="folder, or JSON file, with images and annotations")
    parser.add_argument("--out", type=Path, required=True, help="folder to build in")
    parser.add_argument("--name", help="name of the data set; default: that of the folder")
    parser.add_argument("--folds", type=int, help="number of folds; default: 4, or the number of classes if smaller")
    parser.add_argument("--val", type=float, default=0.2, metavar="SHARE", help="of the images for validation (0.2)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="the images, where they are elsewhere")
    parser.add_argument("--area-threshold", type=int, metavar="N", help="pixels below which a class does not count")
    parser.add_argument("--mask", choices=get_args(MaskKind), help="what masks are, where that cannot be seen")
    _add_workers(parser)


def _describe_lists(parser: Parser) -> None:
    parser.add_argument("name", choices=list(LISTS), metavar="NAME", help=", ".join(LISTS))
    parser.add_argument("--out", type=Path, help="folder for them; default: lists/ in the benchmark's folder")
    parser.add_argument("--download", action="store_true", help="fetch those that are missing")
    parser.add_argument("--mirror", metavar="URL", help="folder to fetch from instead of the authors' repositories")


def _describe_check(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", choices=["pascal", "coco"], help="an official data set, without a config")
    parser.add_argument("--root", type=Path, help="its folder; default: the config's data_root")
    parser.add_argument("--config", type=Path, help="the config of the data set")
    _add_workers(parser)
    _add_overrides(parser)


def _describe_weights(parser: Parser) -> None:
    parser.add_argument(
        "--download",
        nargs="?",
        const="all",
        choices=["backbones", "checkpoints", "all", "torchvision"],
        help="fetch what --archives lacks: the authors' backbones and networks (all), or torchvision's backbones",
    )
    parser.add_argument("--archives", type=Path, help="folder of initmodel.tar.gz, exp.tar.gz; default: initmodel")
    parser.add_argument("--mirror", metavar="URL", help="folder to fetch from instead of the authors' links")


def _add_workers(parser: Parser) -> None:
    parser.add_argument("--workers", type=int, default=processor_count(), help="processes; default: one per core")


def _add_overrides(parser: Parser) -> None:
    parser.add_opts("key value ..., instead of the config's")


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; return 1 when a check found something wrong. Raises UserError."""
    arguments = parse_arguments(words)
    commands = {"pascal": build, "coco": build, "custom": build_custom, "check": run_check, "lists": bring_lists}
    commands |= dict.fromkeys(RECIPES, build_benchmark)
    commands |= {"weights": fetch_weights, "check-weights": check_weights}
    return commands[arguments.command](arguments)


def build(arguments: argparse.Namespace) -> int:
    """Build PASCAL-5i or COCO-20i."""
    root = Path(_config(CONFIGS / "base" / f"{arguments.command}.yaml", arguments.root).data_root)
    source = Source(
        archives=arguments.archives or root / "archives",
        download=arguments.download or arguments.mirror is not None,
        mirror=arguments.mirror,
        checksum=not arguments.no_checksum,
    )
    prepare = prepare_pascal if arguments.command == "pascal" else prepare_coco
    for part, pairs in prepare(root, source, arguments.workers).items():
        list_file = root / "ImageSets" / f"{part}.txt"
        scan_masks(root, [mask for _, mask in pairs], list_file)  # remembered for training and testing
        known = LIST_SIZES.get(arguments.command, {}).get(part, len(pairs))
        note = "" if len(pairs) == known else f", should be {known}"
        print(f"{list_file}: {len(pairs)} images{note}")
    print(f"Verify it with: python -m tools.prepare check {arguments.command} --root {root}")
    return 0


def build_benchmark(arguments: argparse.Namespace) -> int:
    """Build another benchmark and compare it with the known counts; 1 when one differs."""
    root = arguments.root or Path(BENCHMARKS[arguments.command].ROOT)
    findings = prepare_benchmark(arguments.command, root, arguments.archives, arguments.workers)
    for finding in findings:
        print(_line(finding))
    return 1 if any(finding.good is False for finding in findings) else 0


def build_custom(arguments: argparse.Namespace) -> int:
    """Build a data set of one's own and print the config that uses it."""
    if not 0 < arguments.val < 1:
        raise UserError(f"--val {arguments.val}: a share between 0 and 1")
    if arguments.area_threshold is not None and arguments.area_threshold < 1:
        raise UserError(f"--area-threshold {arguments.area_threshold}: should be at least 1")
    config = prepare_custom(
        arguments.source,
        arguments.out,
        name=arguments.name or arguments.out.resolve().name,
        folds=arguments.folds,
        val_share=arguments.val,
        images=arguments.images,
        workers=arguments.workers,
        kind=arguments.mask,
        area_threshold=arguments.area_threshold,
    )
    print(f"\n{config}:\n{config.read_text()}")
    print(f"Verify it with: python -m tools.prepare check --config {config}")
    return 0


def bring_lists(arguments: argparse.Namespace) -> int:
    """Fetch a benchmark's public lists, or say which are there; 1 when one is missing."""
    folder = arguments.out or Path(BENCHMARKS[arguments.name].ROOT, "lists")
    if arguments.download or arguments.mirror:
        fetch_lists(arguments.name, folder, arguments.mirror)
    missing = [path for path in list_paths(arguments.name, folder) if not path.is_file()]
    for path in list_paths(arguments.name, folder):
        print(f"{'missing' if path in missing else 'there  '}  {path}")
    if missing:
        print("Fetch them with --download, or give a folder that has them as `lists`.")
    return 1 if missing else 0


def run_check(arguments: argparse.Namespace) -> int:
    """Verify a data set and print the report."""
    if (arguments.name is None) == (arguments.config is None):
        raise UserError("check: give either pascal or coco, or --config FILE")
    file = arguments.config or CONFIGS / "base" / f"{arguments.name}.yaml"
    cfg = _config(file, arguments.root, arguments.opts)
    print(f"{cfg.data_set} in {cfg.data_root}")
    findings = check(cfg, arguments.workers)
    for finding in findings:
        print(_line(finding))
    wrong = sum(finding.good is False for finding in findings)
    print(f"{wrong} findings wrong" if wrong else "All is well.")
    return 1 if wrong else 0


def fetch_weights(arguments: argparse.Namespace) -> int:
    """Fetch and unpack released weights, then look at them."""
    cfg = _config(arguments.config or CONFIGS / "base" / "pascal.yaml", None, arguments.opts)
    if arguments.method != "hmnet":
        return fetch_published(arguments, cfg)
    kind = arguments.download or ("all" if arguments.mirror else None)
    if kind == "torchvision":
        fetch_torchvision(Path(cfg.initmodel), arguments.mirror)
    else:
        fetch(cfg, kind, arguments.archives or Path(cfg.initmodel), arguments.mirror)
    return check_weights(arguments)


def fetch_published(arguments: argparse.Namespace, cfg: Config) -> int:
    """Say what another method's authors publish, unpack what of it is there, then look at it."""
    method, folder = arguments.method, arguments.archives or Path(cfg.initmodel)
    if arguments.download or arguments.mirror:
        raise UserError(f"--download: {method}'s share links are followed in a browser; then give --archives FOLDER")
    print(PUBLICATIONS[method].describe())
    if count := unpack_published(method, folder, Path(cfg.exp)):
        print(f"  {count} files of an archive in {folder} are below {cfg.exp}")
    else:
        print(f"  no archive {method}.tar.gz, .tgz, .tar or .zip in {folder}; save it there, and run this again")
    return check_weights(arguments)


def check_weights(arguments: argparse.Namespace) -> int:
    """Print a table of weight files: present, absent, or why they do not fit."""
    from tools.weights import list_weights  # needs PyTorch and the network, which preparing data does not

    ending = "manet" if arguments.method == "hmnet" else arguments.method
    papers = sorted([*CONFIGS.glob(f"pascal/*_{ending}*.yaml"), *CONFIGS.glob(f"coco/*_{ending}*.yaml")])
    files = [arguments.config] if arguments.config else papers
    rows = list_weights([load_config(file, arguments.opts) for file in files])
    width = max(len(str(row.path)) for row in rows)
    for row in rows:
        print(f"{row.kind:12}  {row.path!s:{width}}  {row.state}  {row.reason}".rstrip())
    counts = {state: sum(row.state == state for row in rows) for state in ("present", "absent", "misfit")}
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["misfit"] else 0


def _config(file: Path, root: Path | None, overrides: Sequence[str] = ()) -> Config:
    return load_config(file, [*(["data_root", str(root)] if root else []), *overrides])


def _line(finding: Finding) -> str:
    mark = {True: "ok   ", False: "WRONG", None: "note "}[finding.good]
    return f"{mark}  {finding.text}"


if __name__ == "__main__":
    run_main(main)
