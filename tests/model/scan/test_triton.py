"""The Triton kernels: interpreted, against the naive scan in float64, and compiled as far as goes without a GPU."""

import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from model.scan import BackendError, Recap, selective_scan  # noqa: E402
from model.scan import triton as kernels  # noqa: E402
from model.scan.inputs import ScanInputs  # noqa: E402
from tests.model.scan.naive import assert_close, expected, random_inputs  # noqa: E402

compiles_here = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton only interprets here")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process whose kernels are interpreted: Triton decides that once, when the first kernel is defined."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        patch.setenv("TRITON_INTERPRET", "1")
        pool.submit(int).result()
        yield pool


def check(interpreter: ProcessPoolExecutor, inputs: ScanInputs) -> None:
    wanted = expected(inputs)
    y, final, saved = interpreter.submit(kernels.forward, inputs).result()
    assert saved.shape == kernels.saved_shape(inputs)
    assert_close({"y": y, "final": final}, wanted.outputs, 1e-5)
    gradients = interpreter.submit(kernels.backward, wanted.grad_y, wanted.grad_final, saved, inputs).result()
    assert_close(gradients, wanted.gradients, 1e-4)


@pytest.mark.parametrize(
    ("directions", "length", "channels", "states", "period"),
    [
        (1, 19, 2, 8, 0),  # two chunks, the second cut short
        (2, 6, 3, 5, 0),  # neither channels nor states a power of two
        (3, 5, 2, 16, 3),
        (4, 4, 1, 8, 2),  # every direction, whole patches
        (1, 5, 3, 64, 3),  # two blocks of channels
        (2, 3, 2, 8, 1),  # a recap before every token
        (1, 41, 2, 2, 18),  # several chunks in a patch
        (2, 5, 2, 8, 9),  # a patch longer than the sequence
    ],
)
def test_outputs_and_gradients(
    interpreter: ProcessPoolExecutor, directions: int, length: int, channels: int, states: int, period: int
) -> None:
    initial = length % 2 == 0 or period == 18
    check(interpreter, random_inputs(1 + directions % 2, directions, length, channels, states, period, initial))


def test_without_bias_softplus_and_skip(interpreter: ProcessPoolExecutor) -> None:
    check(interpreter, random_inputs(1, 2, 5, 2, 4, plain=True))
    check(interpreter, random_inputs(1, 1, 5, 2, 4, period=2, initial=True, plain=True))


def test_large_and_small_steps(interpreter: ProcessPoolExecutor) -> None:
    """Time steps from 1e-6 to 50: softplus is accurate at both ends, and states that are forgotten leave no trace."""
    inputs = random_inputs(1, 1, 17, 2, 8)
    check(interpreter, inputs._replace(delta=inputs.delta * 15))


@pytest.mark.slow
@pytest.mark.parametrize("period", [0, 9])
def test_larger(interpreter: ProcessPoolExecutor, period: int) -> None:
    check(interpreter, random_inputs(1, 2, 37, 5, 16, period, initial=True))


def differentiate_operator(inputs: ScanInputs, grad_y: Tensor, grad_final: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients of the whole operator; for the interpreter's process."""
    leaves = {name: x.requires_grad_() for name, x in inputs.differentiable().items()}
    y, final = selective_scan(
        inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.order, skip=inputs.skip,
        delta_bias=inputs.delta_bias, delta_softplus=True, recap=Recap(inputs.decay, inputs.recap_state, inputs.period),
        initial_state=inputs.initial_state, backend="triton",
    )  # fmt: skip
    gradients = torch.autograd.grad((y * grad_y).sum() + (final * grad_final).sum(), list(leaves.values()))
    return {"y": y.detach(), "final": final.detach()} | dict(zip(leaves, gradients, strict=True))


def test_operator_runs_the_kernels(interpreter: ProcessPoolExecutor) -> None:
    inputs = random_inputs(1, 2, 6, 2, 4, period=3, initial=True)
    wanted = expected(inputs)
    actual = interpreter.submit(differentiate_operator, inputs, wanted.grad_y, wanted.grad_final).result()
    assert_close(actual, wanted.outputs | wanted.gradients, 1e-4)


@compiles_here
def test_tensors_on_a_cpu_are_refused() -> None:
    with pytest.raises(BackendError, match="needs tensors on a GPU"):
        kernels.forward(random_inputs(1, 1, 3, 2, 4))


@compiles_here
@pytest.mark.parametrize("recap", [False, True])
@pytest.mark.parametrize(
    "name", ["_chunk_maps", "_compose_chunks", "_compose_chunks_backward", "_outputs", "_gradients"]
)
def test_kernels_compile_to_machine_code(
    name: str, recap: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(kernels, name)
    constants = {"SOFTPLUS": True, "RECAP": recap, "REVERSE": recap, "CHUNK": 16, "BLOCK_D": 8, "BLOCK_N": 16}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    integer = re.compile(r"[A-Za-z]+_[bkl]|[LDNK]|period|chunks|patch_chunks")
    types = {name: "i32" if integer.fullmatch(name) else "*fp32" for name in kernel.arg_names}
    types |= {name: "*i64" for name in types if name == "order"} | dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(
        ASTSource(kernel, types, constants), GPUTarget("cuda", 80, 32), {"num_warps": kernels.WARPS}
    )
    assert f".visible .entry {name}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
