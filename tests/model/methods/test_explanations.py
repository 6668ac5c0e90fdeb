"""Maps behind the scores of methods that have some of their own."""

import pytest
import torch

from model.build import build_model
from util.config import load_config


@pytest.mark.parametrize("arch", ["bam", "pfenet", "sccan"])
@torch.inference_mode()
def test_maps_lead_to_the_scores(arch: str) -> None:
    words = ["backbone", "tiny", "width", "32", "blocks", "2", "feature_size", "8", "shot", "2"]
    cfg = load_config(f"config/pascal/pascal_split0_resnet50_{arch}.yaml", words)
    model = build_model(cfg, pretrained=False).eval()
    state = model.encode_support(torch.randn(2, 2, 3, 65, 65), torch.randint(0, 2, (2, 2, 65, 65)))
    queries = model.embed_query(torch.randn(2, 3, 65, 65))
    explanation = model.explain(queries, state)
    assert torch.equal(explanation.scores.final, model.score(queries, state).final)
    assert next(iter(explanation.maps)).startswith("prior")
    for shown in explanation.maps.values():
        assert shown.shape[0] == 2 and shown.dim() == 3
        assert shown.min() >= 0 and shown.max() <= 1
