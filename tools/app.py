"""A page to try the network on: paint one object, find it in other images (`make app`, docs/app.md).

    python -m tools.app                            # the network and the images of `make demo`
    python -m tools.app --weights exp/.../best_1shot.pth --port 7860

It is served to this machine alone, loads nothing from elsewhere and sends nothing anywhere.
Segment: drop a support image, paint the object or drag a box, drop images to search, press "Find the object".
Explain: the maps between an image and its result. Failures: the episodes of a test by IoU, of two by difference.
"""

import argparse
import os
import tempfile
from pathlib import Path

from prediction.predictor import Predictor, find_config
from tools.browser.state import Limits
from util.arguments import Parser
from util.config import load_config
from util.errors import UserError, run_main

ADDRESS = "127.0.0.1"
DEMO = "config/demo.yaml"
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    limits = Limits()
    parser = Parser(description="Segment images in the browser.")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint; default: that of `make demo`")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: what training left by the weights")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--results", type=Path, default=Path("exp"), metavar="DIR", help="tests for Failures (exp)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--max-megapixels", type=float, default=limits.megapixels, metavar="N", help="of an image")
    parser.add_argument("--max-mb", type=int, default=50, metavar="N", help="of an uploaded file")
    parser.add_argument("--max-supports", type=int, default=limits.supports, metavar="N")
    parser.add_argument("--max-queries", type=int, default=limits.queries, metavar="N")
    parser.add_argument("--cache-mb", type=float, default=1000, metavar="N", help="memory for images' features")
    return parser.parse_args()


def choose_weights(given: Path | None) -> Path:
    """The checkpoint that is named, else that of the demo; UserError says how to make one."""
    if given:
        return given
    cfg = load_config(DEMO)
    path = cfg.best_weights(cfg.shot)
    if not path.is_file():
        raise UserError(f"{path}: the demo is not trained yet; run `make demo`, or name a checkpoint by --weights FILE")
    return path


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    """Serve the page until Ctrl-C; `folder` takes uploads and downloads."""
    os.environ.update(QUIET, GRADIO_TEMP_DIR=str(folder))
    try:
        from tools.browser.layout import appearance, build_page  # gradio reads the environment once
        from tools.browser.parts import AppContext
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install -e '.[app]'") from None
    weights = choose_weights(arguments.weights)
    cfg = load_config(arguments.config or find_config(weights))
    predictor = Predictor.from_checkpoint(cfg, weights, arguments.device, arguments.cache_mb)
    limits = Limits(arguments.max_megapixels, arguments.max_supports, arguments.max_queries)
    page = build_page(AppContext(predictor, cfg, limits, folder, arguments.results)).queue(api_open=False)
    print(f"{weights}: http://{ADDRESS}:{arguments.port} (Ctrl-C ends it)", flush=True)
    try:
        page.launch(
            server_name=ADDRESS,
            server_port=arguments.port,
            share=False,
            quiet=True,
            ssr_mode=False,
            max_file_size=f"{arguments.max_mb}mb",
            **appearance(),
        )
    except OSError:
        raise UserError(f"--port {arguments.port}: perhaps it is in use; give another one") from None


def main() -> None:
    """The entry point."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="hmnet-") as folder:
        serve(arguments, Path(folder))


if __name__ == "__main__":
    run_main(main)
