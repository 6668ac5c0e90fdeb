"""The selective scan by C++ kernels, which the machine's compiler builds on first use.

The library is cached where PyTorch caches extensions, under a name made of sources, flags and PyTorch's version.
Without a compiler there is one warning, and the scan in plain PyTorch instead.
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

from model.scan.reference import GRADIENTS, selective_scan_reference

CHUNK = 64  # tokens between two saved states
SOURCE = Path(__file__).with_name("scan.cpp")
HEADERS = [SOURCE.with_name(name) for name in ("block.h", "forward.h", "backward.h")]
INSTRUCTIONS = {
    "AVX2": ["-mavx2", "-mfma", "-DCPU_CAPABILITY_AVX2"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-DCPU_CAPABILITY_AVX512"],
}


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor, skip: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, decay: Tensor | None, recap_state: Tensor | None, period: int,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Scan float32 tensors as `selective_scan` does: outputs, final states, states for `backward`."""
    library = load_library()
    if library is None:
        y, state = selective_scan_reference(
            u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period, initial_state
        )
        return y, state, u.new_empty(saved_shape(delta, A, period))
    u, delta, B, C = _with_rows(u, delta, B, C)
    A, order, skip, delta_bias, decay, recap_state, initial_state = _contiguous(
        A, order, skip, delta_bias, decay, recap_state, initial_state
    )
    return library.forward(
        u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state, period, initial_state, CHUNK
    )


def backward(
    grad_y: Tensor, grad_final: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor,
    skip: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool, decay: Tensor | None,
    recap_state: Tensor | None, period: int, initial_state: Tensor | None, saved: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients for u, delta, A, B, C, skip, delta_bias, decay, recap_state and initial_state; None where absent."""
    optional = (skip, delta_bias, decay, recap_state, initial_state)
    library = load_library()
    if library is None:
        arguments = (skip, delta_bias, delta_softplus, decay, recap_state, period, initial_state)
        return _reference_backward(grad_y, grad_final, (u, delta, A, B, C, order, *arguments))
    u, delta, B, C = _with_rows(u, delta, B, C)
    grad_y, grad_final, A, order, skip, delta_bias, decay, recap_state, initial_state = _contiguous(
        grad_y, grad_final, A, order, *optional
    )
    gradients = library.backward(
        grad_y, grad_final, saved, u, delta, A, B, C, order, skip, delta_bias, delta_softplus, decay, recap_state,
        period, initial_state, CHUNK,
    )  # fmt: skip
    absent = [x is None for x in optional]
    return (*gradients[:5], *(None if no else x for x, no in zip(gradients[5:], absent, strict=True)))


def saved_shape(delta: Tensor, A: Tensor, period: int) -> tuple[int, ...]:
    """The shape (B, K, S, N, D) of what `forward` saves for `backward`: the states before each of S chunks."""
    batch, directions, length, channels = delta.shape
    return batch, directions, -(-length // CHUNK), A.shape[-1], channels


@functools.cache
def load_library() -> Any:
    """The operators of scan.cpp, or None after a warning where they cannot be built."""
    try:
        torch.ops.load_library(_built_library())
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), str(error))
    except OSError as error:
        reason = str(error)
    else:
        return torch.ops.hmnet_scan
    warnings.warn(
        f"the C++ scan cannot be built ({reason}); scanning in plain PyTorch, some hundred times slower: "
        "install g++ or clang++, or name a compiler in CXX",
        stacklevel=2,
    )
    return None


def _built_library() -> Path:
    """The path of the library, built under a file lock if it is not there."""
    flags = ["-O3", "-std=c++20", "-fPIC", *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])]
    if sys.platform != "darwin":  # without its own OpenMP, Apple's compiler builds a scan of one thread
        flags.append("-fopenmp")
    key = [torch.__version__, platform.machine(), *flags, *(path.read_text() for path in (SOURCE, *HEADERS))]
    name = f"hmnet_scan_{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
    library = Path(root, name, "scan.so")
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.with_suffix(".lock")):
        if not library.exists():
            _build(library, flags)
    return library


def _build(library: Path, flags: list[str]) -> None:
    """Compile aside and rename, so that an interrupted build leaves no library."""
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
            subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(library)


def _with_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _contiguous(*tensors: Any) -> tuple[Any, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _reference_backward(grad_y: Tensor, grad_final: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Gradients for the tensors among a scan's arguments, recomputing the scan."""
    with torch.enable_grad():
        leaves: list[Any] = [
            x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments
        ]
        outputs = selective_scan_reference(*leaves)
    wanted = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()]
    gradients = torch.autograd.grad(outputs, [leaves[i] for i in wanted], (grad_y, grad_final))
    by_argument = dict(zip(wanted, gradients, strict=True))
    return tuple(by_argument.get(i) for i in GRADIENTS)
