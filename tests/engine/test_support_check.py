from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dataset.dataset import EvaluationEpisodes
from dataset.index import load_index
from engine.evaluation import Names, Segment, make_episodes, run_episodes
from engine.results import Metrics, SupportDrop
from engine.support_check import CHANGES, check_support, format_miou_drop, miou_drop, with_other_class
from model.methods.method import Scores
from tests.toy import random_network, toy_config, write_toy
from util.config import Config
from util.distributed import ProcessGroup
from util.errors import UserError


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_toy(tmp_path / "toy")
    return toy_config(tmp_path, shot=2, folds=2)


def test_other_supports_show_another_novel_class_and_not_the_query(cfg: Config) -> None:
    index, files = load_index(cfg, "val")
    episodes = make_episodes(cfg, 3, 40)
    changed = [with_other_class(e, index, seed=3, number=i) for i, e in enumerate(episodes.episodes)]
    seen: Counter[int] = Counter()
    for before, after in zip(episodes.episodes, changed, strict=True):
        assert (after.query, after.class_id, after.hard) == (before.query, before.class_id, before.hard)
        assert after.support_class not in (None, before.class_id) and len(set(after.support)) == 2
        assert all(name in index.by_class[after.support_class] and name != after.query for name in after.support)
        seen[after.support_class] += 1
    assert len(seen) > 2  # of four novel classes
    item = EvaluationEpisodes(cfg, changed[:1], files, episodes.classes)[0]
    own = EvaluationEpisodes(cfg, [episodes.episodes[0]], files, episodes.classes)[0]
    assert torch.equal(item["query_mask"], own["query_mask"]) and (item["support_mask"] == 1).any((1, 2)).all()


def test_a_fold_of_one_class_has_no_other(cfg: Config) -> None:
    index = load_index(cfg, "val")[0]
    index.by_class = {1: index.by_class[1]}
    episode = next(e for e in make_episodes(cfg, 3, 40).episodes if e.class_id == 1)
    with pytest.raises(UserError, match="another novel class"):
        with_other_class(episode, index, 0, 0)


def test_who_only_looks_at_the_query_loses_nothing_and_who_copies_the_support_mask_does(cfg: Config) -> None:
    model, process_group, index = random_network(cfg), ProcessGroup(torch.device("cpu")), load_index(cfg, "val")[0]
    episodes = make_episodes(cfg, 3, 30)
    assert any(episode.hard for episode in episodes.episodes)

    def blind(query: Tensor, support: Tensor, mask: Tensor, names: Names) -> Scores:
        scores = torch.stack([query.mean(1), query[:, 0]], dim=1)
        return Scores(scores, scores)

    def copying(query: Tensor, support: Tensor, mask: Tensor, names: Names) -> Scores:
        object_ = (mask == 1).any(1).float()
        scores = torch.stack([0.5 - object_, object_], dim=1)
        return Scores(scores, scores)

    def drop_of(segment: Segment) -> tuple[dict[str, SupportDrop], Metrics]:
        own = run_episodes(model, cfg, episodes, process_group, segment=segment, progress=False)
        found = check_support(model, cfg, episodes, index, process_group, segment, seed=3)
        return {key: miou_drop([own], [found[key]]) for key in CHANGES}, own

    check, _ = drop_of(blind)
    for drop in check.values():
        assert {*drop.miou_drop.model_dump().values(), *drop.hard_miou_drop.model_dump().values()} == {0.0}
    check, own = drop_of(copying)
    empty = check["empty_mask"]
    assert empty.results[0].miou == 0 and empty.miou_drop.mean == pytest.approx(own.miou)
    assert 0 < empty.miou_drop.low <= empty.miou_drop.mean <= empty.miou_drop.high
    assert empty.hard_miou_drop.mean == pytest.approx(own.hard_miou)
    lines = format_miou_drop(check).splitlines()
    assert f"{-100 * own.miou:+.1f} [" in lines[2] and f"{-100 * own.hard_miou:+.1f} [" in lines[2]
