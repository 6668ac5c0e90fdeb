"""The Triton kernels compiled for NVIDIA's architectures, as far as goes without a GPU: registers suffice."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from model.scan import triton as kernels  # noqa: E402
from tests.model.scan.test_triton import KERNELS, compiles_here  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_MEMORY = 48 * 1024  # bytes that a program may take everywhere
STRIDE = re.compile(r"[A-Za-z]+_[bkl]")
INTEGER = re.compile(rf"{STRIDE.pattern}|[LDNK]|period|chunks|patch_chunks")


def check(name: str, architecture: int, folder: Path, states: int = 16, recap: bool = True, wide: bool = False) -> None:
    """Compile a kernel with the tile for so many states; `wide`: strides of 64 bits."""
    kernel = getattr(kernels, name)
    constants = {"SOFTPLUS": True, "RECAP": recap, "REVERSE": recap, "CHUNK": kernels.chunk_limit(states)}
    constants |= {"BLOCK_D": kernels.TILE // states, "BLOCK_N": states}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: "i32" if INTEGER.fullmatch(name) else "*fp32" for name in kernel.arg_names}
    types |= {name: "i64" for name in types if wide and STRIDE.fullmatch(name)}
    types |= {name: "*i64" for name in types if name == "order"} | dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(
        ASTSource(kernel, types, constants), GPUTarget("cuda", architecture, 32), {"num_warps": kernels.WARPS}
    )
    assert f".visible .entry {name}" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_MEMORY
    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [os.fspath(CUOBJDUMP), "-res-usage", os.fspath(folder / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(STACK|LOCAL):(\d+)", usage) == [("STACK", "0"), ("LOCAL", "0")], usage


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@compiles_here
@pytest.mark.parametrize("recap", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_to_machine_code(name: str, recap: bool, tmp_path: Path) -> None:
    check(name, 80, tmp_path, recap=recap)


@compiles_here
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", KERNELS)
def test_other_architectures(name: str, architecture: int, tmp_path: Path) -> None:
    check(name, architecture, tmp_path)


@compiles_here
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
@pytest.mark.parametrize(
    ("states", "wide"), [(1, False), (4, False), (8, False), (32, False), (64, False), (128, False), (16, True)]
)
def test_other_tiles_and_strides(states: int, wide: bool, architecture: int, tmp_path: Path) -> None:
    check("_gradients", architecture, tmp_path, states, wide=wide)
