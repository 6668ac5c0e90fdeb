"""The command line that the entry points share; it also takes what scripts written for BAM pass."""

import argparse
from collections.abc import Sequence

from util.config import Config, load_config


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that name an experiment; `experiment_config` reads them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="experiment file, such as config/pascal/*.yaml")
    parser.add_argument("--arch", help="HMNet or HMNetAMP, instead of the config's")
    launcher = "passed by torch.distributed.launch and ignored: the environment says the same"
    parser.add_argument("--local-rank", "--local_rank", type=int, help=launcher)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ...: override config keys")
    return parser


def experiment_config(arguments: argparse.Namespace) -> Config:
    """The config with its overrides; UserError when it is wrong."""
    arch = ["arch", arguments.arch] if arguments.arch else []
    return load_config(arguments.config, [*arch, *arguments.opts])


def training_arguments(description: str, argv: Sequence[str] | None = None) -> tuple[Config, bool]:
    """The arguments of both training stages: the config, and whether TensorBoard is wanted; UserError as above."""
    parser = experiment_parser(description)
    parser.add_argument("--viz", action="store_true", help="write TensorBoard curves beside the log")
    arguments = parser.parse_args(argv)
    return experiment_config(arguments), arguments.viz
