"""Evaluation's short cuts give the network's own scores."""

import copy

import torch
from torch import Tensor, nn

from model.build import build_model
from model.inference import FeatureCache, prepare_inference
from model.methods.method import Method
from model.tensors import nbytes
from util.config import load_config

SIZES = ["backbone", "tiny", "width", "16", "blocks", "2", "feature_size", "8", "scan", "reference"]
IMAGES = 5


def network(*overrides: str) -> Method:
    """In float64, so that what differs is more than rounding."""
    model = build_model(load_config("config/pascal/pascal_split0_resnet50_manet.yaml", [*SIZES, *overrides]), False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval().double()


def random_images() -> Tensor:
    return torch.randn(IMAGES, 3, 65, 65, dtype=torch.float64)


def episode(images: Tensor, positions: list[list[int]]) -> tuple[Tensor, Tensor, Tensor, list[list[str]]]:
    chosen = images[torch.tensor(positions)]
    mask = torch.randint(0, 2, (len(positions), len(positions[0]) - 1, 65, 65))
    return chosen[:, 0], chosen[:, 1:], mask, [[f"image{i}" for i in row] for row in positions]


@torch.inference_mode()
def test_folding_keeps_the_scores() -> None:
    for overrides in ([], ["ensemble", "false"]):
        model = network(*overrides)
        query, support, mask, _ = episode(random_images(), [[0, 1]])
        folded = prepare_inference(copy.deepcopy(model))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(query, support, mask), model(query, support, mask))


@torch.inference_mode()
def test_cached_scores_equal_the_networks_and_the_budget_holds() -> None:
    model, images = network("shot", "2"), random_images()
    one = FeatureCache(model, 1000)
    one.scores(*episode(images, [[0, 1, 2]]))
    room_for_three = one.nbytes / 2**20 * 1.01
    for megabytes in (1000, room_for_three, 0):
        cache = FeatureCache(model, megabytes)
        for positions in ([[0, 1, 2]], [[1, 0, 3]], [[4, 3, 0], [2, 1, 0]], [[0, 1, 2]]):
            query, support, mask, names = episode(images, positions)
            expected = model(query, support, mask).final
            torch.testing.assert_close(cache.scores(query, support, mask, names).at(query.shape[-2:]), expected)
            assert cache.nbytes <= megabytes * 2**20
            assert cache.nbytes == sum(map(nbytes, cache.held.values()))
    assert [name for name, _ in one.held] == ["image0", "image1", "image2"]


@torch.inference_mode()
def test_a_kept_image_is_not_extracted_again() -> None:
    model, images = network(), random_images()
    cache, extracted = FeatureCache(model, 1000), []
    model.backbone.register_forward_hook(lambda _module, inputs, _output: extracted.append(len(inputs[0])))
    cache.scores(*episode(images, [[0, 1]]))
    cache.scores(*episode(images, [[1, 0]]))
    cache.scores(*episode(images, [[1, 2]]))
    assert extracted == [1, 1, 1]
