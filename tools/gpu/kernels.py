"""The Triton kernels on paper: compiled without a GPU, what each needs of one, and the time that bandwidth allows.

Registers, spills and shared memory are ptxas' own figures. Bytes and exponentials are counted from what the kernels in
`model/scan/triton.py` read, write and compute per token and direction; caches are assumed to help with neither. A scan
can be no faster than the larger of bytes over memory bandwidth and exponentials over the special function units' rate.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tools.gpu.setting import CheckSetting, check

KERNELS = ("_chunk_maps", "_compose_chunks", "_outputs", "_compose_chunks_backward", "_gradients")
ARCHITECTURES = (80, 90)
CONSTANTS = {"SOFTPLUS": True, "RECAP": True, "REVERSE": True, "CHUNK": 16, "BLOCK_D": 8, "BLOCK_N": 16}
REGISTERS, WARPS_PER_SM = 65536, 64  # of one streaming multiprocessor, sm_80 and sm_90


class Card(NamedTuple):
    """A GPU's limits, from NVIDIA's data sheets: bandwidth, and multiprocessors times clock times 16 units each."""

    name: str
    bandwidth: float  # bytes/s
    exponentials: float  # 1/s


CARDS = (
    Card("V100", 0.900e12, 80 * 16 * 1.53e9),
    Card("A100", 1.555e12, 108 * 16 * 1.41e9),
    Card("H100", 3.350e12, 132 * 16 * 1.83e9),
)


class Shape(NamedTuple):
    """One scan of the network: tokens of all directions and images, channels, states, tokens of a chunk."""

    tokens: int
    channels: int
    states: int
    chunk: int

    def forward(self) -> tuple[float, float]:
        """Bytes and exponentials of our three kernels and the sum over directions."""
        d, n, saved = self.channels, self.states, self.channels * self.states / self.chunk
        maps = 12 * d + 4 * n + 4 * saved  # this and the next token's delta, u; B; the chunk's gain
        compose = 8 * saved  # gains in, states out
        outputs = 12 * d + 8 * n + 4 * saved  # delta, u, y; B and C; the state before the chunk
        return self.tokens * (maps + compose + outputs + 4 * d), self.tokens * d * (2 * n + 3 * 2)

    def backward(self) -> tuple[float, float]:
        """The same of the gradients' kernels, which compute the states again."""
        d, n, saved = self.channels, self.states, self.channels * self.states / self.chunk
        maps = 12 * d + 4 * n + 4 * saved
        compose = 8 * saved
        gradients = 24 * d + 16 * n + 12 * saved  # two deltas, u, grad_y, du, ddelta; B, C, dB, dC; states, grads, dA
        sums = 8 * d + 4 * saved  # du over directions, ddelta over tokens; dA over chunks
        return self.tokens * (maps + compose + gradients + sums), self.tokens * d * (3 * n + 3 * 2)

    def mamba_ssm(self) -> tuple[float, float]:
        """mamba-ssm's forward kernel with the copies that it needs: tokens gathered by direction, outputs scattered."""
        d, n = self.channels, self.states
        gathered = 2 * (8 * d + 8 * n)  # u, delta, B and C read and written in scan order
        return self.tokens * (gathered + 12 * d + 8 * n + 8 * d), self.tokens * d * (n + 2)


def compile_kernel(name: str, architecture: int) -> dict[str, Any]:
    """A kernel's needs of a multiprocessor, from ptxas."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.scan import triton as kernels

    kernel = getattr(kernels, name)
    constants = {key: value for key, value in CONSTANTS.items() if key in kernel.arg_names}
    integer = re.compile(r"[A-Za-z]+_[bkl]|[LDNK]|period|chunks|patch_chunks")
    types = {key: "i32" if integer.fullmatch(key) else "*fp32" for key in kernel.arg_names}
    types |= {key: "*i64" for key in types if key == "order"} | dict.fromkeys(constants, "constexpr")
    target, options = GPUTarget("cuda", architecture, 32), {"num_warps": kernels.WARPS}
    compiled = triton.compile(ASTSource(kernel, types, constants), target, options)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        gpu = re.search(r"\.target (\w+)", compiled.asm["ptx"])  # sm_90a, say
        command = [str(ptxas), "-v", f"--gpu-name={gpu and gpu[1]}", str(source), "-o", str(Path(folder, "out"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = _number(r"Used (\d+) registers", report)
    warps = min(WARPS_PER_SM, REGISTERS // (-(-registers // 8) * 8 * 32) // kernels.WARPS * kernels.WARPS)
    return {
        **{"kernel": name.lstrip("_"), "architecture": f"sm_{architecture}", "registers": registers},
        "spilt bytes": _number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes spill loads", report),
        **{"shared bytes": compiled.metadata.shared, "occupancy": f"{warps / WARPS_PER_SM:.0%}"},
    }


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def predict(shape: Shape) -> list[dict[str, Any]]:
    """Milliseconds that bandwidth and exponentials allow, by card."""
    rows = []
    for kind in ("forward", "backward", "mamba_ssm"):
        size, exponentials = getattr(shape, kind)()
        row = {
            "scan": kind,
            "bytes per token": size / shape.tokens,
            "exponentials per token": exponentials / shape.tokens,
        }
        rows.append(row | {f"{c.name} ms": 1e3 * max(size / c.bandwidth, exponentials / c.exponentials) for c in CARDS})
    return rows


def check_kernels(setting: CheckSetting) -> dict[str, Any]:
    """The tables; a kernel that spills registers is a failure. Shape: the query's scan at 473 pixels, two episodes."""
    compiled = [compile_kernel(name, architecture) for architecture in ARCHITECTURES for name in KERNELS]
    spilt = [f"{row['kernel']} on {row['architecture']}" for row in compiled if row["spilt bytes"]]
    check(not spilt, f"registers are spilt by {', '.join(spilt)}")
    return {"kernels": compiled, "limits": predict(Shape(2 * 4 * 64**2, 512, 16, CONSTANTS["CHUNK"]))}
