"""FSSDINO's steps against arrays of the original, and the method on a backbone."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from model.methods.fssdino import ClassModel, class_scores, gram_map, k_means, model_classes
from tests.data import peer_rule
from tests.model.methods.test_hmnet import episode, small

DATA = Path(__file__).parents[2] / "data"


def test_every_step_is_the_originals() -> None:
    expected = np.load(DATA / "fssdino_1w1s.npz")
    (query, support), labels, _ = peer_rule.feature_maps(2, 64, 24, 24, 6, 51)
    vectors, mask = support.movedim(0, -1), labels[1] == 2
    models = model_classes([vectors[~mask], vectors[mask]], 5)
    for number in (0, 1):
        for found, name in (
            (models.prototypes[number], "prototypes"),
            (models.gram[number][:8], "gram_rows"),
            (gram_map(query, models.gram[number]), "gram_map"),
            (
                torch.einsum("kc,chw->khw", F.normalize(models.prototypes[number], dim=1), F.normalize(query, dim=0)),
                "cosines",
            ),
        ):
            torch.testing.assert_close(found, torch.from_numpy(expected[f"{name}{number}"]), atol=2e-5, rtol=1e-4)
    scores = class_scores(query, models, (384, 384))
    best, label = scores.max(0)
    torch.testing.assert_close(best[::8, ::8], torch.from_numpy(expected["scores"]), atol=2e-5, rtol=1e-4)
    assert np.array_equal(label[::4, ::4], expected["label"])
    assert label.flatten().bincount().tolist() == expected["label_areas"].tolist()


def test_few_vectors_are_the_prototypes_and_a_class_without_any_never_wins() -> None:
    few = torch.randn(3, 8)
    models = model_classes([few, torch.empty(0, 8)], 5)
    assert models.known.tolist() == [3, 0]
    assert torch.equal(models.prototypes[0][:3], few)
    assert (class_scores(torch.randn(8, 4, 4), models, (16, 16)).argmax(0) == 0).all()


def test_clusters_that_lie_apart_are_found() -> None:
    centres = torch.eye(5, 12) * torch.tensor([1.0, 2, 3, 4, 5])[:, None]
    x = (centres[torch.arange(100) % 5] + 0.01 * torch.randn(100, 12))[torch.randperm(100)]
    for seed in range(30):  # k-means may stop at a poorer partition; some start finds the best one
        found = k_means(x, 5, np.random.RandomState(seed), torch.Generator().manual_seed(0))
        distance = torch.cdist(centres, found).min(1)[0].max()
        if distance < 0.05:
            return
    raise AssertionError("no start found the clusters")


@torch.inference_mode()
def test_a_batch_is_its_samples_for_any_number_of_shots() -> None:
    model = small("arch", "FSSDINO", "ensemble", "False")
    assert not model.is_trained
    for shot in (1, 3):
        inputs = episode(shot=shot)
        together = model(**inputs)
        assert together.final.shape == (2, 2, 65, 65)
        for i in range(2):
            alone = model(**{name: x[i : i + 1] for name, x in inputs.items()})
            torch.testing.assert_close(together.final[i : i + 1], alone.final, atol=1e-4, rtol=1e-4)
    state = model.encode_support(inputs["support"], inputs["support_mask"])
    assert isinstance(state, ClassModel) and state.gram.shape[:2] == (2, 2)
