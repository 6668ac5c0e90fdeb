"""The trunk's frame, with blocks that only count."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from model.parts.trunk import Trunk


class Memo(NamedTuple):
    support: Tensor


class Counting(nn.Module):
    """Scales the query by a learnt number, adds the support's mean, doubles the support, notes its calls."""

    def __init__(self, fuses: bool) -> None:
        super().__init__()
        self.fuses = fuses
        self.calls: list[str] = []
        self.number = nn.Parameter(torch.randn(()))

    def forward(self, q: Tensor, memory: Memo | None) -> Tensor:
        self.calls.append("query")
        return q * self.number + (memory.support.mean() if memory else 0)

    def encode_support(self, s: Tensor) -> tuple[Tensor, Memo | None]:
        self.calls.append("support")
        return 2 * s, self.memory(s)

    def remember(self, s: Tensor) -> Memo | None:
        self.calls.append("memory")
        return self.memory(s)

    def memory(self, s: Tensor) -> Memo | None:
        return Memo(s) if self.fuses else None


@pytest.mark.parametrize(
    ("fuses", "wanted"),
    [
        ((False, True, False, True), ["support", "support", "support", "memory"]),
        ((True, True, False, False), ["support", "memory", None, None]),
        ((False, False), [None, None]),
    ],
)
def test_the_support_goes_no_further_than_it_is_needed(fuses: tuple[bool, ...], wanted: list[str | None]) -> None:
    blocks = [Counting(each) for each in fuses]
    trunk, s, q = Trunk(blocks, 4), torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4)
    memories = trunk.encode_support(s)
    assert [block.calls for block in blocks] == [[call] if call else [] for call in wanted]
    expected = q
    for number, block in enumerate(blocks):  # a support doubles in every block that it passes
        expected = expected * block.number + (2**number * s.mean() if block.fuses else 0)
    torch.testing.assert_close(trunk(q, memories), nn.functional.layer_norm(expected, (4,)))


def test_without_blocks_nothing_happens() -> None:
    trunk, q = Trunk([], 4), torch.randn(1, 2, 2, 4)
    assert trunk.encode_support(q) == [] and not list(trunk.parameters())
    assert trunk(q, []) is q


def test_recomputed_blocks_run_twice_and_give_the_same_gradients() -> None:
    gradients, calls = [], []
    torch.manual_seed(int(torch.randint(2**31, ())))
    start, inputs = torch.get_rng_state(), torch.randn(2, 1, 2, 2, 4)
    for again in (False, True):
        torch.set_rng_state(start)
        blocks = [Counting(True), Counting(True)]
        trunk, (q, s) = Trunk(blocks, 4, checkpoint_blocks=again), inputs
        (trunk(q, trunk.encode_support(s)) * q).sum().backward()
        gradients.append([block.number.grad for block in blocks])
        calls.append([block.calls.count("query") for block in blocks])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
    assert calls == [[1, 1], [2, 2]]
