"""The density ratio against plain sums of kernels."""

import torch
from torch.nn import functional as F

from tests.model.methods.test_hmnet import episode, small


@torch.inference_mode()
def test_scores_are_logs_of_mean_kernels() -> None:
    model, inputs = small("arch", "density", "ensemble", "False"), episode(shot=3)
    assert not model.is_trained
    scores = model.score(
        model.embed_query(inputs["query"]), model.encode_support(inputs["support"], inputs["support_mask"])
    ).final
    level = model.level
    for b in range(2):
        query = F.normalize(model.backbone(inputs["query"], [level])[level][b].double(), dim=0).flatten(1).T
        support = F.normalize(model.backbone(inputs["support"][b], [level])[level].double(), dim=1)
        height, width = support.shape[-2:]
        marked = (inputs["support_mask"][b] == 1).double()[None]
        share = F.adaptive_avg_pool2d(marked, (height, width))[0].flatten()
        kernels = (model.concentration * (query @ support.movedim(1, -1).flatten(0, 2).T - 1)).exp()  # (m, n)
        for channel, weight in enumerate((1 - share, share)):
            expected = (kernels * weight / weight.sum()).sum(1).log().float()
            torch.testing.assert_close(scores[b, channel].flatten(), expected, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_support_finds_itself() -> None:
    """The image in which the object was marked, as its own query."""
    model, inputs = small("arch", "density", "ensemble", "False"), episode()
    mask = torch.zeros_like(inputs["support_mask"])
    mask[..., :32] = 1
    inputs["support"][..., :32] *= 0.2
    model.concentration = 400.0
    found = model(inputs["support"][:, 0], inputs["support"], mask).final
    assert ((found[:, 1] > found[:, 0]) == mask[:, 0].bool()).float().mean() > 0.8
