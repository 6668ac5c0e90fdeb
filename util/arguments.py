"""The command lines of training and test; they also take what scripts written for BAM and the released code pass.

Nothing here imports PyTorch, so that help and mistakes come at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.config import Config, is_stage_1, load_config
from util.describe import HelpConfig, description
from util.errors import UserError

PANELS = 20  # drawn by --viz, which BAM's scripts pass without a number


def folder(text: str) -> Path:
    """The type of an argument that names a folder; an empty word, which `Path` takes for this one, does not."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)


def check_port(port: int) -> None:
    """UserError for a number that no port has."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: should be from 0 to {(1 << 16) - 1}")


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and whose --opts ends at the next flag."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def add_opts(self, what: str = "override config keys; --help-config lists them") -> None:
        """Take `--opts key value key value ...` anywhere on the line."""
        self.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help=what)
        self.add_argument("--help-config", action=HelpConfig, help="list all config keys and exit")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, with the values of --opts taken as they are, such as -1e-4."""
        words = list(sys.argv[1:] if args is None else args)
        if "--opts" not in self._option_string_actions:
            return super().parse_known_args(words, namespace)
        rest, opts = split_opts(words)
        parsed, unknown = super().parse_known_args(rest, namespace)
        parsed.opts = opts
        return parsed, unknown


def split_opts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without --opts and its pairs, and those pairs, from all places where --opts stands."""
    rest: list[str] = []
    opts: list[str] = []
    place = 0
    while place < len(words):
        if words[place] != "--opts":
            rest.append(words[place])
            place += 1
            continue
        place += 1
        while place < len(words) and not words[place].startswith("-"):
            pair = [word for word in words[place : place + 2] if not word.startswith("--")]
            opts += pair
            place += len(pair)
    return rest, opts


def experiment_parser(what: str) -> Parser:
    """A parser of the arguments that name an experiment; `experiment_config` reads them."""
    parser = Parser(description=what)
    parser.add_argument("--config", required=True, help="experiment file, such as config/pascal/*.yaml")
    parser.add_argument("--arch", help=f"instead of the config's: {description('arch')}")
    launcher = "passed by torch.distributed.launch and ignored: the environment says the same"
    parser.add_argument("--local-rank", "--local_rank", type=int, help=launcher)
    episodes = f"config key test_episodes: {description('test_episodes')}"
    parser.add_argument("--episode", "--eposide", type=int, metavar="N", help=episodes)
    parser.add_opts()
    return parser


def experiment_config(arguments: argparse.Namespace, stage: int = 2) -> Config:
    """The config with its overrides; UserError when it is wrong, or of the other stage of training."""
    arch, path = arguments.arch, arguments.config
    if stage == 1:  # the base learner is the same whatever stage 2 makes of it
        arch = None if arch == "PSPNet" else arch
    elif arch == "PSPNet":
        raise UserError(f"--arch PSPNet: is the base learner of stage 1; run train_base.py --config {path}")
    elif is_stage_1(path):
        raise UserError(f"{path}: is a config of stage 1, the base learner; give it to train_base.py")
    given = {"arch": arch, "test_episodes": arguments.episode}
    words = [str(word) for key, value in given.items() if value is not None for word in (key, value)]
    return load_config(path, [*words, *arguments.opts], stage)


def training_arguments(what: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of both training stages."""
    parser = experiment_parser(what)
    parser.add_argument("--viz", action="store_true", help="write TensorBoard curves beside the log")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that is in the folder, begin afresh")
    return parser.parse_args(argv)


def evaluation_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of test.py."""
    parser = experiment_parser("Test a network on the novel classes of a fold.")
    former = "the same as --arch, its former name; hmnet: the config's"
    parser.add_argument("--method", dest="arch", type=lambda name: None if name == "hmnet" else name, help=former)
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
    arguments = parser.parse_args(argv)
    check_kind(arguments)
    return arguments


def check_kind(arguments: argparse.Namespace) -> None:
    """UserError for arguments of one kind of test beside those of another."""
    if arguments.visualize < 0:
        raise UserError(f"--visualize {arguments.visualize}: should be at least 0")
    kinds = ["--ways"] * (arguments.ways is not None) + ["--generalized"] * (arguments.generalized is not None)
    for name in ("support_check", "visualize", "episodes_out"):
        kinds += [f"--{name.replace('_', '-')}"] * bool(kinds and getattr(arguments, name))
    if len(kinds) > 1:
        raise UserError(f"{kinds[0]} and {kinds[1]}: are of different tests; leave one out")
