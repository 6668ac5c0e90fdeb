"""Blocks and trunk against arrays of the original network: outputs and every gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.methods.hmnet import HMNet
from model.parts.mamba import HybridBlock, SelectiveScan, SelfBlock
from model.parts.trunk import Trunk
from model.released import name_at

WIDTH = 16
FIXTURE = np.load(Path(__file__).parents[2] / "data" / "blocks.npz")


def fixture(case: str, name: str) -> Tensor:
    return torch.from_numpy(FIXTURE[f"{case}/{name}"])


def load(module: nn.Module, case: str, prefix: str) -> dict[str, nn.Parameter]:
    """Fill the module from the fixture; returns its parameters under their released names."""
    named = {name_at(HMNet.released_names, prefix + key): parameter for key, parameter in module.named_parameters()}
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
    block = kind(WIDTH, scan="reference")
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
    blocks = [kind(WIDTH, scan="reference") for kind in (SelfBlock, HybridBlock, SelfBlock, HybridBlock)]
    trunk = Trunk(blocks, WIDTH, checkpoint_blocks)
    named = load(trunk, "trunk", "trunk.")
    query, support = (fixture("trunk", name).requires_grad_() for name in ("query", "support"))
    memories = trunk.encode_support(support.permute(0, 2, 3, 1))
    out = trunk(query.permute(0, 2, 3, 1), memories).permute(0, 3, 1, 2)
    torch.testing.assert_close(out, fixture("trunk", "out_query"), atol=1e-5, rtol=1e-5)
    objective(out).backward()
    assert_relative(query.grad, fixture("trunk", "grad_query"), "query")
    assert_relative(support.grad, fixture("trunk", "grad_support"), "support")
    assert_gradients(named, "trunk")


def test_the_scan_starts_as_specified() -> None:
    """Projection of D inputs as PyTorch starts a linear, time steps log-uniform in [1e-3, 1e-1], A = -(1 ... N)."""
    inner, states, rank = 64, 5, 4
    scan = SelectiveScan(inner, states, rank, "reference")
    for weight, bound in ((scan.x_proj.detach(), inner**-0.5), (scan.dt_proj.detach(), rank**-0.5)):
        assert weight.abs().max() <= bound
        assert weight.abs().mean() == pytest.approx(bound / 2, rel=0.15)
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.15)  # uniform, not normal
    step = nn.functional.softplus(scan.dt_bias.double())
    assert 1e-3 * 0.99 < step.min() < 1e-2 < step.max() < 1e-1 * 1.01
    torch.testing.assert_close(-scan.A[2, 7], torch.arange(1.0, states + 1))


@pytest.mark.parametrize("qim", ["share", "basic"])
@pytest.mark.parametrize("qim_skip", ["scalar", "channel"])
def test_interception_is_one_step_from_the_mean_state(qim: Any, qim_skip: Any) -> None:
    """`share` takes the parameters of SRM's first direction, `basic` a set of its own; both start at mean H."""
    block = HybridBlock(8, 3, "reference", patch_ratio=2, srm="none", qim=qim, qim_skip=qim_skip).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    scan = block.scan if qim == "share" else block.qim_scan
    u, state = torch.randn(1, 4, 4, 16, dtype=torch.float64), torch.randn(1, 4, 16, 3, dtype=torch.float64)
    small = nn.functional.interpolate(u.permute(0, 3, 1, 2), size=2, mode="bilinear", align_corners=True)
    H, A, expected = state[0].mean(0), -scan.A_log[0].exp(), []
    for x in small[0].flatten(1).T:  # (D)
        low, b, c = (scan.x_proj[0] @ x).split([1, 3, 3])
        delta = nn.functional.softplus(scan.dt_proj[0] @ low + scan.dt_bias[0])[:, None]
        skip = scan.skip[0, 0] if qim_skip == "scalar" else scan.skip[0]
        expected.append(((delta * A).exp() * H + delta * x[:, None] * b) @ c + skip * x)
    found = block.intercepted(u, block.scan.project(u.flatten(1, 2)), state)
    back = torch.stack(expected, dim=1).view(1, 16, 2, 2)
    back = nn.functional.interpolate(back, size=4, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, back, atol=1e-6, rtol=1e-5)
    own = {name.split(".")[0] for name, _ in block.named_parameters() if "scan" in name}
    assert own == ({"scan"} if qim == "share" else {"scan", "qim_scan"})
