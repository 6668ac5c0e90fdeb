"""The command lines of training and test; they also take what scripts written for BAM pass.

Nothing here imports PyTorch, so that help and mistakes come at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from util.config import Config, load_config

PANELS = 20  # drawn by --viz, which BAM's scripts pass without a number


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that name an experiment; `experiment_config` reads them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="experiment file, such as config/pascal/*.yaml")
    parser.add_argument("--arch", help="the method, instead of the config's: HMNet, concat, prior, prototype ...")
    launcher = "passed by torch.distributed.launch and ignored: the environment says the same"
    parser.add_argument("--local-rank", "--local_rank", type=int, help=launcher)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="key value ...: override config keys")
    return parser


def experiment_config(arguments: argparse.Namespace) -> Config:
    """The config with its overrides; UserError when it is wrong."""
    arch = ["arch", arguments.arch] if arguments.arch else []
    return load_config(arguments.config, [*arch, *arguments.opts])


def training_arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of both training stages."""
    parser = experiment_parser(description)
    parser.add_argument("--viz", action="store_true", help="write TensorBoard curves beside the log")
    return parser.parse_args(argv)


def evaluation_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of test.py."""
    parser = experiment_parser("Test a network on the novel classes of a fold.")
    parser.add_argument("--method", dest="arch", help="the same as --arch, its former name")
    parser.add_argument(
        "--support-check",
        action="store_true",
        help="the same queries once more with supports of another class, and with an emptied support mask",
    )
    parser.add_argument(
        "--visualize",
        "--viz",
        nargs="?",
        type=int,
        const=PANELS,
        default=0,
        metavar="N",
        help=f"draw N episodes ({PANELS} without a number), spread over the list",
    )
    parser.add_argument("--ways", type=int, metavar="N", help="N-way test as PANet's")
    parser.add_argument(
        "--generalized",
        nargs="?",
        const="novel",
        choices=["novel", "base"],
        help="base classes too, as BAM's; base: these have pixels that both claim (novel)",
    )
    parser.add_argument("--episodes-out", type=Path, metavar="FILE", help="write the (first seed's) episodes")
    parser.add_argument("--result", type=Path, metavar="FILE", help="default: result_test_*.json of the experiment")
    return parser.parse_args(argv)
