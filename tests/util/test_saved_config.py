"""What a run saves of its config: what was given. The rest is worked out again, whatever is put on top."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dataset.benchmarks import table
from dataset.benchmarks.table import BENCHMARKS, open_benchmark
from dataset.index import episode_count
from util.config import BASE_DIR, load_config, load_mapping, restore_config
from util.schema import DERIVED, Config

PROTOCOLS = get_args(Config.model_fields["protocol"].annotation)
CHANGES: list[list[str]] = [
    [],
    ["arch", "HMNetAMP"],
    ["train_h", "641", "train_w", "641"],
    ["metric_size", "input", "test_episodes", "77", "amp", "bf16", "feature_size", "32"],
    ["workers", "3", "draw_workers", "5"],
]


def saved(tmp_path: Path, data_set: str, words: list[str]) -> tuple[Path, Config]:
    cfg = load_config(BASE_DIR / f"{data_set}.yaml", words)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.to_yaml())
    return path, cfg


@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_overrides_mean_what_they_mean_on_the_original(tmp_path: Path, data_set: str, words: list[str]) -> None:
    path, cfg = saved(tmp_path, data_set, words)
    assert load_config(path) == load_mapping(cfg.given(), "weights") == restore_config(cfg.given()) == cfg
    for name in random.sample(sorted(BENCHMARKS), 4):
        for protocol in PROTOCOLS:
            opts = ["test_set", name, "protocol", protocol]
            wanted = load_config(BASE_DIR / f"{data_set}.yaml", [*words, *opts])
            assert load_config(path, opts) == load_mapping(cfg.given(), "weights", opts) == wanted


@pytest.mark.parametrize("name", BENCHMARKS)
def test_another_benchmark_is_scored_as_it_is_known(tmp_path: Path, name: str) -> None:
    """A run's saved config, tested on each benchmark by each protocol."""
    path, _ = saved(tmp_path, random.choice(["pascal", "coco"]), [])
    for protocol in PROTOCOLS:
        cfg = table.test_config(load_config(path, ["test_set", name, "protocol", protocol]))
        assert cfg.metric_size == ("input" if protocol == "hsnet" else "original")
        assert cfg.test_episodes is None and open_benchmark(cfg).EPISODES == BENCHMARKS[name].EPISODES


def test_fss1000_by_hsnet(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "pascal", [])
    cfg = table.test_config(load_config(path, ["test_set", "fss1000", "protocol", "hsnet"]))
    images = [f"{number}" for number in range(2400)]
    index: Any = type("Index", (), {"images": images, "lines": images})()
    assert (cfg.metric_size, episode_count(cfg, index)) == ("input", 2400)
    own = load_config(path)
    assert (own.metric_size, own.test_episodes) == ("original", 1000)


def test_only_what_was_given_is_saved(tmp_path: Path) -> None:
    path, cfg = saved(tmp_path, "pascal", ["amp", "off"])
    content = yaml.safe_load(path.read_text())
    assert set(Config.model_fields) - content.keys() == DERIVED.keys() - {"amp"}
    assert content == {key: value for key, value in cfg.model_dump().items() if key in content}


def test_a_copy_works_out_again_what_was_not_given() -> None:
    cfg = load_config(BASE_DIR / "coco.yaml", ["feature_size", "32"])
    copy = cfg.model_copy(update={"protocol": "hsnet", "arch": "HMNet", "train_h": 473})
    assert (copy.metric_size, copy.test_episodes, copy.amp, copy.feature_size) == ("input", None, "off", 32)
    assert (cfg.metric_size, cfg.test_episodes, cfg.amp) == ("original", 4000, "auto")


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_a_file_that_version_0_1_saved(tmp_path: Path, data_set: str) -> None:
    """It holds what was worked out, and drew as many streams as it had workers."""
    cfg = load_config(BASE_DIR / f"{data_set}.yaml", ["workers", "6", "test_episodes", "50"])
    content = {key: value for key, value in cfg.model_dump().items() if key != "draw_workers"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump(content))
    drawn = cfg.model_copy(update={"draw_workers": 6})
    assert load_config(path) == restore_config(content) == drawn
    new = load_config(path, ["test_set", "fss1000", "protocol", "hsnet", "arch", "concat"])
    assert (new.metric_size, new.test_episodes, new.amp) == ("input", 50, "off")
    (tmp_path / "leaf.yaml").write_text("base: config.yaml\nprotocol: hsnet\n")
    assert load_config(tmp_path / "leaf.yaml").metric_size == "input"


def test_workers_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("workers: 3\n")
    assert load_config(path).draw_workers == 8
    path.write_text("workers: 3\ndata_set: coco\n")
    assert load_config(path).draw_workers == 32


def test_seeds_of_protocols_that_have_their_own() -> None:
    for protocol, seeds in (("released", (4, 5)), ("seeded", (4, 5)), ("hsnet", (0,)), ("fptrans", (5678,))):
        cfg = load_config(BASE_DIR / "pascal.yaml", ["protocol", protocol, "seeds", "[4, 5, 4]"])
        assert cfg.test_seeds == seeds
    cfg = load_config(BASE_DIR / "pascal.yaml", ["episodes_file", "e.jsonl", "seeds", "[4, 5]"])
    assert cfg.test_seeds == (4,)


def test_keys_that_are_gone_change_nothing() -> None:
    cfg = load_config(BASE_DIR / "pascal.yaml")
    content = cfg.model_dump() | {"batch_statistics": True}
    with pytest.warns(UserWarning, match="ignored: batch_statistics"):
        assert load_mapping(content, "a checkpoint") == restore_config(content) == cfg
