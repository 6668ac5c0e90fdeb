"""The command line that both training stages share."""

import argparse
from collections.abc import Sequence

from util.config import Config, load_config


def training_arguments(description: str, argv: Sequence[str] | None = None) -> tuple[Config, bool]:
    """The config with its overrides, and whether TensorBoard is wanted; UserError for a wrong config."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="experiment file, such as config/pascal/*.yaml")
    parser.add_argument("--viz", action="store_true", help="write TensorBoard curves beside the log")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ...: override config keys")
    arguments = parser.parse_args(argv)
    return load_config(arguments.config, arguments.opts), arguments.viz
