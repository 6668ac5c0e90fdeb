"""Every method in half precision on a CPU, a pretended GPU and, by `make gpu`, a real one, against float32."""

import copy

import pytest
import torch
from torch import Tensor

from engine.optim import autocast
from model.methods.hsnet import Votes
from model.methods.method import Method
from tests.devices import on_gpu
from tests.model.methods.recorded import without_dropout
from tests.model.methods.test_every_method import NAMES, episode, small
from tests.pretended import Pretended, moved, pretended_gpu

CPU = torch.device("cpu")
Inputs = tuple[Tensor, ...]
# On maps smaller than their stride, oneDNN's bf16 convolutions take gradients from memory that nobody wrote to.
SIDES = {"HSNet": 192}


def prepared(name: str, scan: str = "reference") -> tuple[Method, Method, Inputs]:
    """A method, another with the same weights, and an episode."""
    side = SIDES.get(name)
    model, size = small(
        name, shot=2, scan=scan, **({"train_h": side, "train_w": side, "val_size": side} if side else {})
    )
    return model, copy.deepcopy(model), episode(side or size, shot=2)


def scores(model: Method, inputs: Inputs, amp: str, device: torch.device = CPU) -> Tensor:
    """Of an evaluation; of a vote the voters', as rounding may change who wins."""
    with torch.no_grad(), autocast(amp, device):
        found = model.eval()(*inputs)
    return torch.stack(found.auxiliary) if isinstance(found, Votes) else found.final


def loss(model: Method, inputs: Inputs, amp: str, device: torch.device = CPU) -> Tensor:
    """Of a training step."""
    torch.manual_seed(0)  # for what training draws
    classes = torch.zeros(len(inputs[0]), dtype=torch.int64, device=device)
    with autocast(amp, device):
        found = without_dropout(model)(*inputs, episode_class=classes)
        return torch.stack([*model.losses(found, inputs[2][:, 0].long()).values()]).sum()


def gradients(model: Method, total: Tensor) -> Tensor:
    """All in one vector."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([x.cpu().flatten() for x in torch.autograd.grad(total, learnt, materialize_grads=True)])


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Finite, and on average that near."""
    assert found.isfinite().all()
    assert (found.float().cpu() - wanted).abs().mean() <= tolerance * wanted.abs().mean()


def check(name: str, amp: str, device: torch.device) -> None:
    """Scores, loss and gradients."""
    model, half, inputs = prepared(name, "auto")
    half, there = half.to(device), tuple(x.to(device) for x in inputs)
    assert_near(scores(half, there, amp, device), scores(model, inputs, "off"), 0.15)
    if not model.is_trained:
        return
    wanted, found = loss(model, inputs, "off"), loss(half, there, amp, device)
    assert_near(found, wanted, 0.02)
    likeness = torch.cosine_similarity(gradients(half, found), gradients(model, wanted), dim=0)
    assert likeness > 0.99, likeness


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bf16_on_a_cpu(name: str) -> None:
    check(name, "bf16", CPU)


@on_gpu
@pytest.mark.parametrize("amp", ["fp16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_on_a_gpu(name: str, amp: str, device: torch.device) -> None:
    check(name, amp, device)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_fp16_on_a_pretended_gpu(name: str) -> None:
    """No tensor of the CPU meets one of the GPU, and what autocast leaves in half precision can be computed so."""
    model, half, inputs = prepared(name)
    wanted = scores(model, inputs, "off")
    wanted_loss = loss(model, inputs, "off") if model.is_trained else None
    with pretended_gpu():
        moved(half)
        there = tuple(map(Pretended, inputs))
        found = scores(half, there, "fp16", there[0].device)
        assert isinstance(found, Pretended)
        assert_near(found, wanted, 0.1)
        if wanted_loss is not None:
            assert_near(loss(half, there, "fp16", there[0].device), wanted_loss, 0.02)
