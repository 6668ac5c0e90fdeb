"""The prior and the nearest prototype against plain formulas, and all training-free methods on kinds of backbones."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.build import build_model
from model.methods.method import Method
from model.resize import resize
from prediction.predictor import Predictor
from tests.model.methods.test_hmnet import episode, small
from tests.toy import ROOT
from util.config import load_config


@torch.inference_mode()
def test_the_prior_is_hmnets_own() -> None:
    for ensemble in ("True", "False"):
        prior, network, inputs = small("arch", "prior", "ensemble", ensemble), small("ensemble", ensemble), episode()
        assert not prior.is_trained
        prior.load_state_dict({k: v for k, v in network.state_dict().items() if k in prior.state_dict()})
        state = network.encode_support(inputs["support"], inputs["support_mask"])
        expected = network.prior(network.embed_query(inputs["query"]), state)[:, :1]  # (B, 1, f, f)
        scores = prior(**inputs).final
        torch.testing.assert_close(scores[:, 1:], resize(expected, 65))
        torch.testing.assert_close(scores.sum(1), torch.ones(2, 65, 65))
        assert scores.min() >= -1e-6


@torch.inference_mode()
def test_nearest_prototype_is_that_of_the_plain_formula() -> None:
    model, one = small("arch", "prototype", "ensemble", "False"), episode(shot=2)
    features = [
        model.backbone(images, ["layer4"])["layer4"] for images in (one["query"], *one["support"].unbind(1))
    ]  # (B, C, h, w) each
    mask = F.interpolate((one["support_mask"] == 1).float(), size=(8, 8), mode="bilinear", align_corners=True)
    _, *support = (F.interpolate(f, size=(8, 8), mode="bilinear", align_corners=True) for f in features)
    cosines = []
    for part in (1 - mask, mask):
        means = [(f * part[:, k : k + 1]).sum((2, 3)) / part[:, k : k + 1].sum((2, 3)) for k, f in enumerate(support)]
        cosines.append(F.cosine_similarity(features[0], torch.stack(means).mean(0)[:, :, None, None], dim=1))
    expected = F.interpolate(torch.stack(cosines, 1), size=(65, 65), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(**one).final, expected, atol=2e-4, rtol=1e-3)


SMALL = {  # instead of the backbone that a file names, and the side of images
    "dinov2": ("timm/test_vit", 64),
    "dinov3": ("timm/test_vit", 64),
    "lite2": ("timm/test_efficientnet", 64),
    "resnet": ("tiny", 65),
    "vgg": ("tiny", 65),
}


def on_backbone(file: str, arch: str, *words: str) -> Method:
    return build_model(load_config(ROOT / f"config/training_free/{file}.yaml", ["arch", arch, *words]), False)


@pytest.mark.parametrize("file", SMALL)
@pytest.mark.parametrize("arch", ["prior", "prototype", "adapt", "INSID3", "FSSDINO", "density"])
def test_every_method_predicts_on_every_backbone(file: str, arch: str) -> None:
    backbone, size = SMALL[file]
    sides = [word for key in ("train_h", "train_w", "val_size") for word in (key, str(size))]
    model = on_backbone(file, arch, "backbone", backbone, "feature_size", "8", *sides)
    assert not model.is_trained
    predictor = Predictor(model, size, 1, torch.device("cpu"))
    image, mask = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    mask[10:30, 10:40] = 1
    image[mask == 1] //= 4
    predictor.set_support([image], [mask])
    prediction = predictor.predict(image)
    assert prediction.mask.shape == (40, 60) and 0 <= prediction.probability.min() <= prediction.probability.max() <= 1


@pytest.mark.parametrize("file", sorted(path.stem for path in (ROOT / "config" / "training_free").glob("*.yaml")))
def test_every_file_names_a_backbone_and_a_size_that_it_takes(file: str) -> None:
    assert file in SMALL
    assert not on_backbone(file, "INSID3").is_trained
