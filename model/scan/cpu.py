"""The selective scan by C++ kernels, which the machine's compiler builds on first use.

The library is cached where PyTorch caches extensions, under a name made of sources, flags and PyTorch's version; where
that folder cannot be used, it is built in a temporary one. Without a compiler there is one warning, and the scan in
plain PyTorch instead.
"""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from .inputs import ScanInputs
from .reference import selective_scan_reference

CHUNK = 64  # tokens between two saved states
STRIDED = ("u", "delta", "B", "C")  # only their rows have to be contiguous
SOURCE = Path(__file__).with_name("scan.cpp")
HEADERS = [SOURCE.with_name(name) for name in ("block.h", "forward.h", "backward.h")]
INSTRUCTIONS = {
    "AVX2": ["-mavx2", "-mfma", "-DCPU_CAPABILITY_AVX2"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-DCPU_CAPABILITY_AVX512"],
}


def forward(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Scan float32 tensors as `selective_scan` does: outputs, final states, states for `backward`."""
    library = load_library()
    if library is None:
        return *selective_scan_reference(inputs), inputs.u.new_empty(saved_shape(inputs))
    return library.forward(_packed(inputs), inputs.delta_softplus, inputs.period, CHUNK)


def backward(grad_y: Tensor, grad_state: Tensor, saved: Tensor, inputs: ScanInputs) -> dict[str, Tensor]:
    """Gradients of the tensors among the inputs, by name, from those of both outputs and what `forward` saved."""
    library = load_library()
    if library is None:
        return _reference_backward(grad_y, grad_state, inputs)
    grad_y, grad_state = grad_y.contiguous(), grad_state.contiguous()
    settings = inputs.delta_softplus, inputs.period, CHUNK
    return library.backward(grad_y, grad_state, saved, _packed(inputs), *settings)


def saved_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """The shape (B, K, S, N, D) of what `forward` saves for `backward`: the states before each of S chunks."""
    (batch, length, _), (directions, channels, states) = inputs.u.shape, inputs.A.shape
    return batch, directions, -(-length // CHUNK), states, channels


def _packed(inputs: ScanInputs) -> dict[str, Tensor]:
    return {
        name: x if name in STRIDED and x.stride(-1) == 1 else x.contiguous() for name, x in inputs.tensors().items()
    }


def _reference_backward(grad_y: Tensor, grad_state: Tensor, inputs: ScanInputs) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves: dict[str, Any] = {n: x.detach().requires_grad_() for n, x in inputs.differentiable().items()}
        outputs = selective_scan_reference(inputs._replace(**leaves))
    gradients = torch.autograd.grad(outputs, list(leaves.values()), (grad_y, grad_state))
    return dict(zip(leaves, gradients, strict=True))


class BuildError(Exception):
    """Why the compiler built nothing."""


@functools.cache
def load_library() -> Any:
    """The operators of scan.cpp, or None after a warning where they cannot be built."""
    try:
        try:
            torch.ops.load_library(_cached_library())
        except (OSError, RuntimeError) as error:  # no home or no writing there, a full disk, a mount without execution
            warnings.warn(
                f"the C++ scan is compiled in a temporary folder, again at every start ({error}): "
                "set TORCH_EXTENSIONS_DIR to a folder that can be written to",
                stacklevel=2,
            )
            with tempfile.TemporaryDirectory() as folder:  # what is loaded stays loaded
                torch.ops.load_library(_build(Path(folder, "scan.so"), _flags()))
    except (BuildError, OSError) as error:
        warnings.warn(
            f"the C++ scan cannot be built ({error}); scanning in plain PyTorch, some hundred times slower: "
            "install g++ or clang++, or name a compiler in CXX",
            stacklevel=2,
        )
        return None
    return torch.ops.selective_scan_cpu


def _flags() -> list[str]:
    flags = ["-O3", "-std=c++20", "-fPIC", *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])]
    # Without its own OpenMP, Apple's compiler builds a scan of one thread.
    return flags if sys.platform == "darwin" else [*flags, "-fopenmp"]


def _cached_library() -> Path:
    """The path of the library, built under a file lock if it is not there."""
    flags = _flags()
    key = [torch.__version__, platform.machine(), *flags, *(path.read_text() for path in (SOURCE, *HEADERS))]
    name = f"selective_scan_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    library = Path(root, name, "scan.so")
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                _build(library, flags)
    return library


def _build(library: Path, flags: list[str]) -> Path:
    """Compile in a folder of its own and rename, so that an interrupted build leaves no library."""
    from torch.utils import cpp_extension  # its import is slow, and looks for CUDA aloud

    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        object_file, built = Path(folder, "scan.o"), Path(folder, "scan.so")
        compile_command = [*compiler, "-c", str(SOURCE), "-o", str(object_file), *flags]
        compile_command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
        # Linking without -fopenmp binds to the OpenMP runtime that PyTorch has loaded, and so to its threads.
        link_command = [*compiler, "-shared", str(object_file), "-o", str(built)]
        link_command += [f"-L{path}" for path in cpp_extension.library_paths()]
        for command in (compile_command, [*link_command, "-ltorch_cpu", "-lc10"]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except OSError as error:
                raise BuildError(error) from error
            except subprocess.CalledProcessError as error:
                lines = error.stderr.splitlines()
                raise BuildError(next((line for line in lines if "error" in line), str(error))) from error
        built.replace(library)
    return library
