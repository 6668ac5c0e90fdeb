"""The method and the threshold of a run: as they are asked for, or as the supports themselves say."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prediction.expectation import as_json, better, expect, leave_out, lines, write_curve
from prediction.fitted import NAME as FITTED
from prediction.fitted import load_fitted
from prediction.joint import Joint, has_few, together
from prediction.predictor import DEFAULT_CONFIG, Predictor
from prediction.shared import open_shared
from prediction.support import SupportClass
from prediction.tiles import Tiling, check_tiling, crop_supports
from util.config import Config, load_config
from util.errors import UserError

FREE = ("adapt", "prototype")  # methods without weights, the usual one first
NETWORK = "hmnet-lite"  # joins the usual one where there are few masks
USUAL = f"{FREE[0]} and {NETWORK}"  # what is taken where nothing is asked for


class Source(NamedTuple):
    """Which method is to segment."""

    cfg: Config
    weights: Path | None  # None for a training-free method
    is_usual: bool  # nothing was asked for


class Choice(NamedTuple):
    """What segments, with its supports set."""

    predictor: Predictor
    threshold: float
    notes: dict[str, Any]  # for run.json


def find_source(weights: str | None, arch: str | None, config: Path | None, overrides: Sequence[str]) -> Source:
    """Config and weights of a trained network as `open_shared`, or the config of a training-free method.

    UserError where both are named, and as those.
    """
    if weights and arch:
        raise UserError("give either --weights FILE, a trained network, or --arch METHOD, a training-free method")
    if weights:
        return Source(*open_shared(weights, overrides, config), is_usual=False)
    cfg = load_config(config or DEFAULT_CONFIG, ["arch", arch or FREE[0], *overrides])
    return Source(cfg, None, is_usual=not arch)


def open_predictor(source: Source, device: str, cache_mb: float = 0) -> Predictor:
    """A predictor of a method; the usual one is joined by NETWORK, unless the config's backbone is another one."""
    cfg = source.cfg
    if source.weights:
        return Predictor.from_checkpoint(cfg, source.weights, device, cache_mb)
    predictor = Predictor.from_method(cfg.arch, cfg, device, cache_mb)
    if source.is_usual:
        network, weights = open_shared(NETWORK, ["initmodel", cfg.initmodel])
        if network.backbone == cfg.backbone:
            return together(predictor, Predictor.from_checkpoint(network, weights, device))
    return predictor


def choose(
    arguments: argparse.Namespace, source: Source, support: Sequence[SupportClass], known: Mapping[str, Any]
) -> Choice:
    """Open what is asked for and set its supports; try it on them where that was not noted before.

    Where nothing is asked for, the better one of FREE is taken, the first one joined by NETWORK if it has few masks.
    `known` are the notes of an earlier run of the same settings.
    """
    cfg = source.cfg
    opened = source if has_few(support) else source._replace(is_usual=False)  # whose network would count for nothing
    predictor = open_predictor(opened, arguments.device or cfg.device)
    classes = {item.name: (item.images, item.masks) for item in support}
    if not source.weights:
        load_fitted(arguments.out / FITTED, predictor)
    usual = USUAL if isinstance(predictor.model, Joint) else cfg.arch
    if arguments.tile:
        check_tiling(predictor, Tiling(arguments.tile, arguments.overlap))
    predictor.set_support(classes)  # whatever is wrong with it is said now
    notes = dict(known) or {"method": usual, "threshold": arguments.threshold or 0.5, "expected": {}}
    if not known and not arguments.no_expectation and max(len(item.images) for item in support) > 1:
        others = FREE[1:] if source.is_usual else ()
        ways = {usual: predictor, **{name: predictor.with_method(name, cfg) for name in others}}
        asked: float | None = arguments.threshold
        if trials := {way: found for way, each in ways.items() if (found := leave_out(each, support, asked))}:
            expected = {way: expect(found, asked) for way, found in trials.items()}
            used = better(trials, expected)
            notes = {"method": used, "threshold": expected[used].threshold, "expected": as_json(expected)}
            print("\n".join(lines(expected, used)))
    if notes["method"] != usual:
        predictor = predictor.with_method(notes["method"], cfg)
    if arguments.curve:
        write_curve(arguments.out, predictor, support, notes["threshold"])
    predictor.set_support(crop_supports(classes, arguments.tile) if arguments.scale == "auto" else classes)
    return Choice(predictor, notes["threshold"], notes)
