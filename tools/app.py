"""A page to try a network or method on: paint one object, find it in other images (`make app`, docs/app.md).

    python -m tools.app                            # the network and the images of `make demo`
    python -m tools.app --weights exp/.../best_1shot.pth --port 7860
    python -m tools.app --arch prototype           # a training-free method

It is served to this machine alone, loads nothing from elsewhere and sends nothing anywhere.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from engine.origin import checkpoint_config
from prediction.choice import FREE
from prediction.predictor import DEFAULT_CONFIG, Predictor
from util.arguments import Parser
from util.config import Config, load_config
from util.errors import UserError, run_main

ADDRESS = "127.0.0.1"
DEMO = "config/demo.yaml"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description="Segment images in the browser.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint; default: the demo's, else adapt")
    source.add_argument("--arch", metavar="METHOD", help="a training-free method instead: prototype, prior ...")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: that of the weights, or predict.yaml")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--results", type=Path, default=Path("exp"), metavar="DIR", help="tests for Failures (exp)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--max-megapixels", type=float, default=50, metavar="N", help="of an image")
    parser.add_argument("--max-mb", type=int, default=50, metavar="N", help="of an uploaded file")
    parser.add_argument("--max-supports", type=int, default=20, metavar="N")
    parser.add_argument("--max-queries", type=int, default=100, metavar="N")
    parser.add_argument("--cache-mb", type=float, default=1000, metavar="N", help="memory for images' features")
    return parser.parse_args()


def choose_weights(given: Path | None) -> Path | None:
    """The checkpoint that is named, else that of the demo; None where that is not trained."""
    if given:
        return given
    cfg = load_config(DEMO)
    path = cfg.best_weights(cfg.shot)
    return path if path.is_file() else None


def open_predictor(arguments: argparse.Namespace) -> tuple[Predictor, Config, str]:
    """What the command line asks for, its config, and a line that says what it is."""
    memory = arguments.device, arguments.cache_mb
    weights = None if arguments.arch else choose_weights(arguments.weights)
    if weights is None:
        cfg = load_config(arguments.config or DEFAULT_CONFIG, ["arch", arguments.arch or FREE[0]])
        predictor, origin = Predictor.from_method(cfg.arch, cfg, *memory), "training-free"
    else:
        cfg = load_config(arguments.config) if arguments.config else checkpoint_config(weights)
        origin = f"trained: {weights}"
        predictor = Predictor.from_checkpoint(cfg, weights, *memory)
    return predictor, cfg, f"{cfg.arch}, {origin}; backbone {cfg.backbone}, device {predictor.device}"


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Serve the page until Ctrl-C; `folder` takes uploads and downloads."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=str(folder))
    try:
        from tools.browser.page import HERE, THEME, AppContext, Limits, build_page  # gradio reads the environment once
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'gradio>=6'") from None
    predictor, cfg, source = open_predictor(arguments)
    limits = Limits(arguments.max_megapixels, arguments.max_supports, arguments.max_queries)
    page = build_page(AppContext(predictor, cfg, source, limits, folder, arguments.results)).queue(api_open=False)
    where: Any = {"server_name": ADDRESS, "server_port": arguments.port, "share": False}
    looks: Any = {"theme": THEME, "css_paths": HERE / "page.css", "footer_links": []}
    print(f"{source}: http://{ADDRESS}:{arguments.port} (Ctrl-C ends it)", flush=True)
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
