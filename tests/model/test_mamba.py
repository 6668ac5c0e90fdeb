"""Blocks and trunk against arrays of the original network: outputs and every gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.mamba import HybridBlock, SelfBlock, Trunk
from model.released import released_name

WIDTH = 16
FIXTURE = np.load(Path(__file__).parents[1] / "data" / "blocks.npz")


def fixture(case: str, name: str) -> Tensor:
    return torch.from_numpy(FIXTURE[f"{case}/{name}"])


def load(module: nn.Module, case: str, prefix: str) -> dict[str, nn.Parameter]:
    """Fill the module from the fixture; returns its parameters under their released names."""
    named = {released_name(prefix + key): parameter for key, parameter in module.named_parameters()}
    assert set(named) == {key.split("/weight/")[1] for key in FIXTURE.files if key.startswith(f"{case}/weight/")}
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(fixture(case, f"weight/{key}").view(parameter.shape))
    return named


def objective(*outputs: Tensor) -> Tensor:
    return torch.stack([(x * torch.sin(0.37 * torch.arange(x.numel())).view_as(x)).sum() for x in outputs]).sum()


def assert_gradients(named: dict[str, nn.Parameter], case: str) -> None:
    expected = {key.split("/grad/")[1] for key in FIXTURE.files if key.startswith(f"{case}/grad/")}
    assert {key for key, parameter in named.items() if parameter.grad is not None} == expected
    for key in expected:
        assert_relative(named[key].grad, fixture(case, f"grad/{key}").view(named[key].shape), key)


def assert_relative(actual: Tensor, expected: Tensor, name: str, tolerance: float = 2e-4) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize(("case", "kind", "index"), [("self_block", SelfBlock, 0), ("hybrid_block", HybridBlock, 1)])
def test_block_reproduces_the_original(case: str, kind: type, index: int) -> None:
    block = kind(WIDTH, backend="reference")
    named = load(block, case, f"trunk.blocks.{index}.")
    query, support = (fixture(case, name).requires_grad_() for name in ("query", "support"))
    out_support, memory = block.encode_support(support)
    out_query = block(query, memory)
    torch.testing.assert_close(out_query, fixture(case, "out_query"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out_support, fixture(case, "out_support"), atol=1e-5, rtol=1e-5)
    objective(out_query, out_support).backward()
    assert_relative(query.grad, fixture(case, "grad_query"), "query")
    assert_relative(support.grad, fixture(case, "grad_support"), "support")
    assert_gradients(named, case)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_trunk_reproduces_the_original(checkpoint_blocks: bool) -> None:
    trunk = Trunk(WIDTH, blocks=4, backend="reference", checkpoint_blocks=checkpoint_blocks)
    named = load(trunk, "trunk", "trunk.")
    query, support = (fixture("trunk", name).requires_grad_() for name in ("query", "support"))
    memories = trunk.encode_support(support.permute(0, 2, 3, 1))
    out = trunk(query.permute(0, 2, 3, 1), memories).permute(0, 3, 1, 2)
    torch.testing.assert_close(out, fixture("trunk", "out_query"), atol=1e-5, rtol=1e-5)
    objective(out).backward()
    assert_relative(query.grad, fixture("trunk", "grad_query"), "query")
    assert_relative(support.grad, fixture("trunk", "grad_support"), "support")
    assert_gradients(named, "trunk")
