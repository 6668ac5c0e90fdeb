"""INSID3's steps against arrays of the original, and the method on a backbone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.methods.insid3 import cluster, debias, find_candidates, position_basis, support_prototype, weigh_clusters
from model.parts.maps import coarse_mask, enlarge, unit
from tests.data import peer_rule
from tests.model.methods.test_hmnet import episode, small

DATA = Path(__file__).parents[2] / "data"
TAU, THRESHOLD, COMPONENTS, PATCH = 0.6, 0.2, 6, 16


def recorded(shots: int) -> tuple[Tensor, Tensor, Tensor, dict[str, np.ndarray]]:
    """Maps (K + 1, C, h, w), the target last, masks (K, H, W), the empty image's map, and what the original gave."""
    if shots == 1:
        maps, labels, empty = peer_rule.feature_maps(2, 96, 24, 24, 5, 22, 1, 0.9)
        masks = peer_rule.enlarge((labels[:1] == 1)[0], PATCH)[None]
    else:
        maps, labels, empty = peer_rule.feature_maps(4, 96, 24, 24, 5, 57, 1, 0.9)
        masks = torch.stack([peer_rule.enlarge(label == 2, PATCH) for label in labels[:3]])
        masks[1, :, : masks.shape[2] // 2] = False
        masks[2, : masks.shape[1] // 2] = False
    return maps, masks, empty[0], dict(np.load(DATA / f"insid3_{shots}s.npz"))


def agrees(found: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected).to(found), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shots", [1, 3])
def test_every_step_is_the_originals(shots: int) -> None:
    maps, masks, empty, expected = recorded(shots)
    basis = position_basis(empty, COMPONENTS)
    agrees((torch.eye(96) - basis @ basis.T)[:8], expected["projection_rows"])
    whole = unit(maps)
    debiased = debias(whole, basis)
    agrees(debiased[-1, ::8], expected["debiased_target"])
    coarse = torch.stack([coarse_mask(mask, (24, 24)) for mask in masks])
    prototype = support_prototype(debiased[:-1], coarse)
    agrees(prototype, expected["prototype"])
    candidates = find_candidates(debiased[-1], prototype, debiased[:-1], coarse)
    agrees(candidates.forward, expected["forward_similarity"])
    assert np.array_equal(candidates.votes, expected["votes"])
    assert np.array_equal(candidates.chosen, expected["candidates"])
    labels = cluster(whole[-1], TAU)
    theirs = torch.from_numpy(expected["labels"]).long()
    pairs = set(zip(labels.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    assert len(pairs) == labels.max() + 1 == theirs.max() + 1 == expected["clusters"]  # the same partition
    clusters = weigh_clusters(theirs, whole[-1], debiased[-1], prototype, candidates.chosen)
    assert clusters.seed == expected["seed"]
    for found, name in zip(
        [clusters.cross, clusters.intra, clusters.area, clusters.combined],
        ["cross_similarity", "intra_similarity", "area_weights", "combined"],
        strict=True,
    ):
        agrees(found, expected[name])
    agrees(clusters.combined[theirs], expected["combined_map"])
    chosen = clusters.combined[theirs] > THRESHOLD
    assert np.array_equal(chosen, expected["coarse_mask"])
    mask = enlarge(chosen.float()[None, None], (384, 384))[0, 0] > 0.5
    assert mask.sum() == expected["mask_area"]
    assert np.array_equal(mask[::4, ::4], expected["mask"])


def test_a_small_object_keeps_a_position() -> None:
    mask = torch.zeros(64, 48, dtype=torch.uint8)
    assert not coarse_mask(mask, (8, 6)).any()
    mask[16, 8] = 1
    assert coarse_mask(mask, (8, 6)).nonzero().tolist() == [[2, 1]]  # the nearest rule samples its corner
    mask = torch.zeros(64, 48, dtype=torch.uint8)
    mask[21:23, 29:31] = 1
    mask[0, 0] = 255
    assert coarse_mask(mask, (8, 6)).nonzero().tolist() == [[2, 3]]


def test_components_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        position_basis(torch.randn(8, 4, 4), 8)


@torch.inference_mode()
def test_a_batch_is_its_samples_for_any_number_of_shots() -> None:
    model = small("arch", "INSID3", "ensemble", "False")
    model.components, model.tau = 4, 0.9
    assert not model.is_trained
    for shot in (1, 3):
        inputs = episode(shot=shot)
        together = model(**inputs)
        assert together.final.shape == (2, 2, 65, 65)
        for i in range(2):
            alone = model(**{name: x[i : i + 1] for name, x in inputs.items()})
            torch.testing.assert_close(together.final[i : i + 1], alone.final)
    explained = model.explain(
        model.embed_query(inputs["query"]), model.encode_support(inputs["support"], inputs["support_mask"])
    )
    torch.testing.assert_close(explained.scores.resize(65).final, together.final)
    assert [x.shape[0] for x in explained.maps.values()] == [2, 2, 2]
