"""A page to try a network or method on: paint one object, find it in other images (`make app`, docs/app.md).

    python -m tools.app                            # `adapt`, which needs no training, and a menu of all that is here
    python -m tools.app --weights exp/.../best_1shot.pth --port 7860
    python -m tools.app --arch prototype           # a training-free method

It is served to this machine alone, loads nothing from elsewhere and sends nothing anywhere.
"""

import argparse
import os
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from prediction.choice import FREE, USUAL, find_source, open_predictor
from prediction.zoo import entries
from tools.browser.session import Limits, Network
from util.arguments import Parser, check_port
from util.config import load_config
from util.errors import UserError, run_main

ADDRESS = "127.0.0.1"
DEMO = "config/demo.yaml"
METHODS = (*FREE, "prior")  # training-free ones to choose from
KEPT = 2  # networks in memory


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Segment images in the browser.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", metavar="NAME", help="of the zoo, or a checkpoint; default: adapt, without any")
    source.add_argument("--arch", metavar="METHOD", help="a training-free method instead: prototype, prior ...")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: that of the weights, or predict.yaml")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--results", type=Path, default=Path("exp"), metavar="DIR", help="tests for Failures (exp)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--max-megapixels", type=float, default=50, metavar="N", help="of an image")
    parser.add_argument("--max-mb", type=int, default=50, metavar="N", help="of an uploaded file")
    parser.add_argument("--max-supports", type=int, default=20, metavar="N")
    parser.add_argument("--max-queries", type=int, default=500, metavar="N")
    parser.add_argument("--cache-mb", type=float, default=1000, metavar="N", help="memory for images' features")
    arguments = parser.parse_args()
    check_port(arguments.port)
    return arguments


def first_name(arguments: argparse.Namespace) -> str:
    """What the command line asks for, else the usual way."""
    return str(arguments.weights or arguments.arch or USUAL)


def all_names(first: str) -> list[str]:
    """That one, the zoo's networks whose weights are here, training-free methods, and the demo's checkpoint."""
    near = [entry for entry in entries().values() if entry.about or Path("exp", entry.config.parent.name).is_dir()]
    zoo = [entry.name for entry in near if entry.weights.is_file()]
    cfg = load_config(DEMO)
    demo = cfg.best_weights(cfg.shot)
    return list(dict.fromkeys([first, *zoo, *METHODS, *([str(demo)] if demo.is_file() else [])]))


def open_network(arguments: argparse.Namespace, name: str) -> Network:
    """One of `all_names`; UserError where something of it is missing."""
    is_free = name in (*METHODS, arguments.arch)
    weights, arch = (None, None) if name == USUAL else (None, name) if is_free else (name, None)
    source = find_source(weights, arch, arguments.config if name == first_name(arguments) else None, [])
    predictor = open_predictor(source, arguments.device, arguments.cache_mb)
    what = f"{name}: {source.cfg.arch}, trained" if weights else f"{arch or name}, training-free"
    return Network(source, predictor, f"{what}; backbone {source.cfg.backbone_name}, device {predictor.device}")


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Serve the page until Ctrl-C; `folder` takes uploads and downloads."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=str(folder))
    try:
        from tools.browser.page import HERE, THEME, Page  # gradio reads the environment once
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'gradio>=6'") from None
    names, opened = all_names(first_name(arguments)), lru_cache(KEPT)(partial(open_network, arguments))
    about = opened(names[0]).about
    limits = Limits(arguments.max_megapixels, arguments.max_supports, arguments.max_queries)
    page = Page(names, opened, limits, folder, arguments.results).build().queue(api_open=False)
    where: Any = {"server_name": ADDRESS, "server_port": arguments.port, "share": False}
    looks: Any = {"theme": THEME, "css_paths": HERE / "page.css", "footer_links": []}
    print(f"{about}: http://{ADDRESS}:{arguments.port} (Ctrl-C ends it)", flush=True)
    try:
        page.launch(quiet=True, ssr_mode=False, max_file_size=f"{arguments.max_mb}mb", **where, **looks)
    except OSError:
        raise UserError(f"--port {arguments.port}: perhaps it is in use; give another one") from None


def main() -> None:
    """The entry point."""
    with tempfile.TemporaryDirectory(prefix="hmnet-") as folder:
        serve(parse_arguments(), Path(folder))


if __name__ == "__main__":
    run_main(main)
