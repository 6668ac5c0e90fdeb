"""The prior and the nearest prototype against plain formulas."""

import torch
from torch.nn import functional as F

from model.resize import resize
from tests.model.methods.test_hmnet import episode, small


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
