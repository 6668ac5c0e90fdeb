import errno
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from model.build import build_model
from model.methods.hmnet import HMNet
from model.parts.mamba import HybridBlock, SupportMemory
from prediction.evidence import gather_evidence
from prediction.predictor import Predictor
from tests.prediction.test_predictor import shapes
from tests.toy import toy_config
from util.config import Config
from util.errors import UserError


def test_maps_lead_to_the_prediction(predictor: Predictor) -> None:
    predictor.set_support({name: ([image], [mask]) for name in "ab" for image, mask in [shapes(50, 60)]})
    query, _ = shapes(45, 70)
    evidence, expected = gather_evidence(predictor, query), predictor.predict(query)
    drawn = predictor.prediction(evidence.names, evidence.scores, (45, 70))
    assert drawn.names == expected.names == ("a", "b")
    np.testing.assert_allclose(drawn.class_probabilities, expected.class_probabilities, atol=1e-5)
    final = torch.cat([scores.final for scores in evidence.scores])
    torch.testing.assert_close(evidence.maps["probability after the ensemble"], final.softmax(1)[:, 1])
    probabilities = [maps for caption, maps in evidence.maps.items() if "QIM" not in caption]
    assert len(probabilities) == 5
    for maps in probabilities:
        assert maps.shape == (2, 8, 8) and maps.min() >= 0 and maps.max() <= 1 + 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where the memory comes from")
def test_scores_lie_on_the_disk(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = shapes(50, 60)
    predictor.set_support([image], [mask])
    with torch.inference_mode():
        expected = predictor.scores([predictor.network_input(image)])[0][0].final
    stored = gather_evidence(predictor, image).scores[0].final
    assert torch.equal(stored, expected) and f"{stored.data_ptr():x}-" in Path("/proc/self/maps").read_text()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prediction.evidence.NamedTemporaryFile", full)
    with pytest.raises(UserError, match=r"No space left on device; set TMPDIR"):
        gather_evidence(predictor, image)


def test_interception_is_what_is_lost_without_it(predictor: Predictor) -> None:
    """The scan's output of a hybrid block with QIM less that of the same block without, by position."""
    image, mask = shapes(50, 60)
    predictor.set_support([image], [mask])
    query, _ = shapes(45, 70)
    added: dict[int, Tensor] = {}
    trunk = cast(HMNet, predictor.model).trunk
    blocks = {n: b for n, b in enumerate(trunk.blocks, 1) if isinstance(b, HybridBlock)}
    for number, block in blocks.items():

        def both(u: Tensor, memory: SupportMemory | None, number: int = number, block: HybridBlock = block) -> Tensor:
            with_qim = HybridBlock.scan_query(block, u, memory)
            qim, block.qim = block.qim, "none"
            added[number] = (with_qim - HybridBlock.scan_query(block, u, memory)).norm(dim=-1)
            block.qim = qim
            return with_qim

        block.scan_query = both  # type: ignore[method-assign]
    maps = gather_evidence(predictor, query).maps
    found = {int(caption.split()[3].rstrip(":")): x for caption, x in maps.items() if caption.startswith("QIM")}
    assert found.keys() == added.keys() == blocks.keys() and blocks
    for number, norms in found.items():
        torch.testing.assert_close(norms, added[number], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(40, 80), (80, 30), (50, 50), (1, 99)])
def test_maps_are_of_the_image_alone(experiment: tuple[Config, Path], size: tuple[int, int]) -> None:
    """In a padded square an image lies at the top left."""
    cfg = toy_config(experiment[1].parents[6], arch="BAM")
    predictor = Predictor(build_model(cfg, pretrained=False), cfg.val_size, 1, torch.device("cpu"))
    assert predictor.model.images.fit == "padded"
    predictor.set_support(*([part] for part in shapes(50, 60)))
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    evidence = gather_evidence(predictor, image)
    side = max(size)
    for caption, maps in evidence.maps.items():
        grid = maps.shape[1:]
        assert grid == tuple(max(1, round(max(grid) * part / side)) for part in size), caption
    whole = next(iter(evidence.scores)).final.softmax(1)[:, 1]
    shown = evidence.maps["probability after the ensemble"]
    torch.testing.assert_close(shown, whole[:, : shown.shape[1], : shown.shape[2]])


@pytest.mark.parametrize("keys", [{"ensemble": False}, {"qim": "none"}, {"arch": "prior"}, {"arch": "prototype"}])
def test_methods_without_some_parts(experiment: tuple[Config, Path], keys: dict[str, object]) -> None:
    cfg = toy_config(experiment[1].parents[6], **keys)
    predictor = Predictor(build_model(cfg, pretrained=False), cfg.val_size, 1, torch.device("cpu"))
    predictor.set_support(*([part] for part in shapes(50, 60)))
    captions = " ".join(gather_evidence(predictor, shapes(40, 40)[0]).maps)
    assert ("base class" in captions) == (keys == {"qim": "none"})
    assert ("QIM" in captions) == (keys == {"ensemble": False})
    assert "probability" in captions
