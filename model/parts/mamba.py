"""HMNet's blocks for the trunk: self Mamba blocks and hybrid Mamba blocks (paper, section 4).

Maps are channels last, `(B, f, f, C)`; scans run over `(B, L, D)` in image order.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.parts.order import patch_orders, plain_orders
from model.resize import resize_last
from model.scan import BackendError, Recap, selective_scan
from util.errors import UserError

Srm = Literal["none", "basic", "recap"]
Qim = Literal["none", "basic", "share"]
DIRECTIONS = 4


class SupportMemory(NamedTuple):
    """What scanning the whole downsampled support does to a state: `h <- decay * h + state`, per direction."""

    decay: Tensor  # (B, 4, D, N)
    state: Tensor  # (B, 4, D, N), also the hidden state right after the support


class Tokens(NamedTuple):
    """Scan input with its projections, which are per position and therefore in image order."""

    u: Tensor  # (B, L, D)
    projected: Tensor  # (B, L, directions, R + 2N): low-rank time step, B and C of every direction


class SelectiveScan(nn.Module):
    """Selective scan in several directions, each with parameters of its own, summed in image order.

    Args: inner channels D, state size N, rank R of the time-step projection, the scan backend's name, directions.
    Source: paper, section 3.2; initialisation as in Mamba (time steps log-uniform in [1e-3, 1e-1], A = -(1..N)).
    """

    def __init__(
        self, inner: int, state_size: int, rank: int, backend: str = "auto", directions: int = DIRECTIONS
    ) -> None:
        super().__init__()
        self.rank, self.state_size, self.backend = rank, state_size, backend
        self.x_proj = nn.Parameter(torch.empty(directions, rank + 2 * state_size, inner))
        self.dt_proj = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(directions, inner, 1))
        self.skip = nn.Parameter(torch.ones(directions, inner))
        nn.init.uniform_(self.x_proj, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_proj, -(rank**-0.5), rank**-0.5)
        step = torch.empty(directions, inner).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
        self.dt_bias.data.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    @property
    def A(self) -> Tensor:
        """The negative state matrix, `(directions, D, N)` in float32."""
        return -self.A_log.float().exp()

    def project(self, u: Tensor) -> Tokens:
        """Project `u (B, L, D)` for all directions in one product."""
        projected = F.linear(u, self.x_proj.flatten(0, 1))
        return Tokens(u, projected.unflatten(-1, self.x_proj.shape[:2]))

    def delta(self, tokens: Tokens) -> Tensor:
        """Time steps before bias and softplus, `(B, directions, L, D)`."""
        return tokens.projected[..., : self.rank].transpose(1, 2) @ self.dt_proj.transpose(1, 2)

    def forward(
        self,
        tokens: Tokens,
        order: Tensor,
        recap: Recap | None = None,
        initial_state: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scan in K directions `order (K, L)`: sums `(B, L, D)`, last states `(B, K, D, N)`; other `skip (K, D)`."""
        k, sizes = len(order), (self.rank, self.state_size, self.state_size)
        low, B, C = tokens.projected[:, :, :k].transpose(1, 2).split(sizes, dim=-1)  # (B, K, L, R or N) each
        try:
            return selective_scan(
                tokens.u, low, self.A[:k], B, C, order, skip=self.skip[:k] if skip is None else skip,
                delta_bias=self.dt_bias[:k], delta_proj=self.dt_proj[:k], delta_softplus=True, recap=recap,
                initial_state=initial_state, backend=self.backend,
            )  # fmt: skip
        except BackendError as error:
            raise UserError(f"config key scan: {error}") from error

    def memory(self, tokens: Tokens, order: Tensor) -> tuple[Tensor, SupportMemory]:
        """Scan the support once: its outputs and the affine map that the whole of it is to any state."""
        y, state = self(tokens, order)
        total = F.softplus(self.delta(tokens).float() + self.dt_bias[:, None]).sum(dim=2)  # (B, 4, D)
        return y, SupportMemory((total.unsqueeze(-1) * self.A).exp(), state)

    def intercept(self, tokens: Tokens, state: Tensor, skip: Tensor) -> Tensor:
        """One step from `state (B, D, N)` in direction 0, at every position by itself: `(B, L, D)` (equation of QIM).

        It is a scan whose state is replaced in front of every token; `skip (1, D)`.
        """
        order = torch.arange(tokens.u.shape[1], device=tokens.u.device).unsqueeze(0)
        return self(tokens, order, Recap(None, state.unsqueeze(1), period=1), skip=skip)[0]


class Branch(nn.Module):
    """What query and support each have of their own in a block: projections, depthwise convolution and MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def scan_input(self, x: Tensor) -> Tensor:
        """`(B, f, f, C)` to the scan's input `(B, f, f, D)`."""
        x = F.linear(x, self.in_proj.weight.chunk(2)[0])
        return F.silu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    def gate(self, x: Tensor) -> Tensor:
        """`(B, f, f, C)` to the gate `(B, f, f, D)` of the scan's output."""
        return F.silu(F.linear(x, self.in_proj.weight.chunk(2)[1]))


class MambaBlock(nn.Module):
    """One Mamba block over query and support; the branches share layer norms and scan (paper, section 4.1).

    Args: width C, state size N, scan backend. Subclasses say how the support is scanned and remembered, and how the
    query is scanned with that memory.
    """

    fuses = False

    def __init__(self, width: int, state_size: int = 16, scan: str = "auto") -> None:
        super().__init__()
        inner = 2 * width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scan = SelectiveScan(inner, state_size, math.ceil(width / 16), scan)
        self.out_norm = nn.LayerNorm(inner)
        self.query, self.support = Branch(width), Branch(width)

    def scan_support(self, u: Tensor) -> tuple[Tensor, SupportMemory | None]:
        """Scan the support map `(B, f, f, D)`: output of the same shape and the memory for the query."""
        raise TypeError(f"{type(self).__name__} does not say how it scans the support")

    def scan_query(self, u: Tensor, memory: SupportMemory | None) -> Tensor:
        """Scan the query map `(B, f, f, D)` with the support's memory: output of the same shape."""
        raise TypeError(f"{type(self).__name__} does not say how it scans the query")

    def forward(self, q: Tensor, memory: SupportMemory | None) -> Tensor:
        """The query's way through the block, `(B, f, f, C)` to the same."""
        x = self.ln_1(q)
        y = self.scan_query(self.query.scan_input(x), memory)
        q = q + self.query.out_proj(self.out_norm(y) * self.query.gate(x))
        q = q + self.query.mlp(self.ln_2(q))
        return q

    def encode_support(self, s: Tensor) -> tuple[Tensor, SupportMemory | None]:
        """The support's way through the block: the next block's support and the memory for the query."""
        x = self.ln_1(s)
        y, memory = self.scan_support(self.support.scan_input(x))
        s = s + self.support.out_proj(self.out_norm(y) * self.support.gate(x))
        s = s + self.support.mlp(self.ln_2(s))
        return s, memory

    def remember(self, s: Tensor) -> SupportMemory | None:
        """The memory alone, where nothing needs the block's support output."""
        return self.scan_support(self.support.scan_input(self.ln_1(s)))[1]


class SelfBlock(MambaBlock):
    """Query and support each scanned on its own in four directions (paper, section 4.2)."""

    def scan_support(self, u: Tensor) -> tuple[Tensor, None]:
        return self.scan_query(u, None), None

    def scan_query(self, u: Tensor, memory: SupportMemory | None) -> Tensor:
        y, _ = self.scan(self.scan.project(u.flatten(1, 2)), plain_orders(u.shape[1], u.device))
        return y.unflatten(1, u.shape[1:3])


class HybridBlock(MambaBlock):
    """Support recapped Mamba (SRM) plus query intercepted Mamba (QIM) (paper, sections 4.3 and 4.4).

    Args beyond `MambaBlock`: `patch_ratio` a, the patches along a side; `srm`: `recap` replays the support in front of
    every query patch, `basic` once in front of the whole query, `none` not at all; `qim` steps every query position
    from the mean support state, `share` with the parameters of SRM's direction 0, `basic` with a set of its own, `none`
    leaves QIM out; `qim_skip`: `scalar` takes channel 0's skip for all channels as the released weights expect,
    `channel` is the paper's equation; `qim_state_grad`: whether gradients flow into QIM's state (released: no).
    """

    fuses = True

    def __init__(
        self,
        width: int,
        state_size: int = 16,
        scan: str = "auto",
        patch_ratio: int = 4,
        srm: Srm = "recap",
        qim: Qim = "share",
        qim_skip: Literal["scalar", "channel"] = "scalar",
        qim_state_grad: bool = False,
    ) -> None:
        super().__init__(width, state_size, scan)
        self.patch_ratio, self.srm, self.qim = patch_ratio, srm, qim
        self.qim_skip, self.qim_state_grad = qim_skip, qim_state_grad
        if qim == "basic":
            self.qim_scan = SelectiveScan(2 * width, state_size, math.ceil(width / 16), scan, directions=1)

    def scan_support(self, u: Tensor) -> tuple[Tensor, SupportMemory]:
        size = u.shape[1]
        small = resize_last(u, size // self.patch_ratio)  # (B, p, p, D)
        tokens = self.scan.project(small.flatten(1, 2))
        y, memory = self.scan.memory(tokens, plain_orders(small.shape[1], u.device))
        return resize_last(y.unflatten(1, small.shape[1:3]), size), memory

    def scan_query(self, u: Tensor, memory: SupportMemory | None) -> Tensor:
        assert memory is not None
        tokens = self.scan.project(u.flatten(1, 2))
        y = self._recapped(tokens, u.shape[1], memory).unflatten(1, u.shape[1:3])
        return y if self.qim == "none" else y + self.intercepted(u, tokens, memory.state)

    def _recapped(self, tokens: Tokens, size: int, memory: SupportMemory) -> Tensor:
        """SRM: the support's affine map applied to the state in front of every patch stands for replaying it."""
        device = tokens.u.device
        if self.srm == "recap":
            recap = Recap(memory.decay, memory.state, period=(size // self.patch_ratio) ** 2)
            return self.scan(tokens, patch_orders(size, self.patch_ratio, device), recap=recap)[0]
        initial = memory.state if self.srm == "basic" else None
        return self.scan(tokens, plain_orders(size, device), initial_state=initial)[0]

    def intercepted(self, u: Tensor, tokens: Tokens, state: Tensor) -> Tensor:
        """QIM on the downsampled query; projections are linear, so SRM's are resized instead of made again."""
        size, small = u.shape[1], u.shape[1] // self.patch_ratio
        state = state if self.qim_state_grad else state.detach()
        x = resize_last(u, small).flatten(1, 2)  # (B, p * p, D)
        if self.qim == "share":
            projected = resize_last(tokens.projected.flatten(2).unflatten(1, (size, size)), small).flatten(1, 2)
            scan, tokens = self.scan, Tokens(x, projected.unflatten(-1, tokens.projected.shape[2:]))
        else:
            scan, tokens = self.qim_scan, self.qim_scan.project(x)
        skip = scan.skip[:1, :1].expand(-1, u.shape[-1]) if self.qim_skip == "scalar" else scan.skip[:1]
        y = scan.intercept(tokens, state.mean(1), skip)
        return resize_last(y.unflatten(1, (small, small)), size)
