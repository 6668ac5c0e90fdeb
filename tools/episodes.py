"""A benchmark's test episodes from its lists alone: `python -m tools.episodes NAME --out FILE`.

A line each: the class, the query, the supports in drawing order. No image is read, unless the benchmark has no lists.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataset.benchmarks.table import BENCHMARKS, open_benchmark, test_config
from dataset.episode import draw_episodes
from dataset.index import episode_count
from util.arguments import Parser
from util.config import load_config
from util.errors import run_main
from util.files import atomic_write

CONFIGS = Path(__file__).resolve().parent.parent / "config" / "base"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line (`words`, or the process's own)."""
    parser = Parser(prog="python -m tools.episodes", description="Draw a benchmark's test episodes.")
    parser.add_argument("name", choices=sorted(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--protocol", choices=["hsnet", "released", "seeded", "fptrans"], default="hsnet")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--count", type=int, help="default: as many as the benchmark is known by")
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help="the public lists; default: lists/ in the data's folder"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data's folder; default: the benchmark's own")
    parser.add_argument("--seed", type=int, default=321, help="of the protocols released and seeded")
    parser.add_opts("key value ...: other config keys")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Read the lists, draw, write. Raises UserError."""
    arguments = parse_arguments(words)
    keys = {"test_set": arguments.name, "test_fold": arguments.fold, "protocol": arguments.protocol}
    keys |= {"shot": arguments.shot, "test_episodes": arguments.count, "lists": arguments.lists}
    options = [str(word) for key, value in keys.items() if value is not None for word in (key, value)]
    options += ["test_root", str(arguments.root)] if arguments.root else []
    base = CONFIGS / ("coco.yaml" if arguments.name == "coco" else "pascal.yaml")
    cfg = test_config(load_config(base, [*options, *arguments.opts]))
    benchmark = open_benchmark(cfg)
    index = benchmark.index("test")
    count = episode_count(cfg, index)
    episodes = draw_episodes(index, cfg.shot, count, arguments.seed, cfg.protocol, cfg.draw_workers)
    lines = [
        " ".join([benchmark.class_label(e.class_id), *map(benchmark.image_label, (e.query, *e.support))])
        for e in episodes
    ]
    atomic_write(arguments.out, "".join(f"{line}\n" for line in lines))
    print(f"{arguments.out}: {len(lines)} episodes")


if __name__ == "__main__":
    run_main(main)
