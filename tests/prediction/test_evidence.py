from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.build import build_model
from model.parts.mamba import HybridBlock, SupportMemory
from prediction.evidence import gather_evidence
from prediction.predictor import Predictor
from tests.prediction.test_predictor import shapes
from tests.toy import toy_config
from util.config import Config


def test_maps_lead_to_the_prediction(predictor: Predictor) -> None:
    predictor.set_support({name: ([image], [mask]) for name in "ab" for image, mask in [shapes(50, 60)]})
    query, _ = shapes(45, 70)
    evidence, expected = gather_evidence(predictor, query), predictor.predict(query)
    drawn = predictor.prediction(evidence.names, evidence.margins, (45, 70))
    assert drawn.names == expected.names == ("a", "b")
    np.testing.assert_allclose(drawn.class_probabilities, expected.class_probabilities, atol=1e-5)
    alone = torch.sigmoid(evidence.margins)
    torch.testing.assert_close(evidence.final, alone, atol=1e-5, rtol=1e-4)
    for maps in (evidence.prior, evidence.meta, evidence.base):
        assert maps.min() >= 0 and maps.max() <= 1 + 1e-6
    assert evidence.prior.shape == (2, 2, 8, 8) and evidence.base.shape == (8, 8)


def test_interception_is_what_is_lost_without_it(predictor: Predictor) -> None:
    """The scan's output of a hybrid block with QIM less that of the same block without, by position."""
    image, mask = shapes(50, 60)
    predictor.set_support([image], [mask])
    query, _ = shapes(45, 70)
    added: dict[int, Tensor] = {}
    blocks = {n: b for n, b in enumerate(predictor.model.trunk.blocks) if isinstance(b, HybridBlock)}
    for number, block in blocks.items():

        def both(u: Tensor, memory: SupportMemory | None, number: int = number, block: HybridBlock = block) -> Tensor:
            with_qim = HybridBlock.scan_query(block, u, memory)
            qim, block.qim = block.qim, "none"
            added[number] = (with_qim - HybridBlock.scan_query(block, u, memory))[0].norm(dim=-1)
            block.qim = qim
            return with_qim

        block.scan_query = both  # type: ignore[method-assign]
    found = gather_evidence(predictor, query).interception
    assert found.keys() == added.keys() == blocks.keys() and blocks
    for number, norms in found.items():
        torch.testing.assert_close(norms[0], added[number], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("keys", [{"ensemble": False}, {"qim": "none"}])
def test_networks_without_some_parts(experiment: tuple[Config, Path], keys: dict[str, object]) -> None:
    cfg = toy_config(experiment[1].parents[6], **keys)
    predictor = Predictor(build_model(cfg, pretrained=False), cfg.val_size, 1, torch.device("cpu"))
    predictor.set_support(*([part] for part in shapes(50, 60)))
    evidence = gather_evidence(predictor, shapes(40, 40)[0])
    assert (evidence.base is None) == ("ensemble" in keys) and bool(evidence.interception) == ("qim" not in keys)
