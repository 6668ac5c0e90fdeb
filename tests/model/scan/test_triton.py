"""The Triton kernels, interpreted, against the naive scan in float64."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
from model.scan import BackendError, Recap, operator, selective_scan
from model.scan import triton as kernels
from model.scan.inputs import ScanInputs
from tests.model.scan.naive import assert_close, expected, random_inputs

KERNELS = ("_chunk_maps", "_compose_chunks", "_compose_chunks_backward", "_outputs", "_gradients")
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


def scattered(x: Tensor) -> Tensor:
    """The same with rows that are not contiguous."""
    return x.mT.contiguous().mT


def shared(x: Tensor) -> Tensor:
    """The first direction's for all, as one tensor of stride 0."""
    return x[:, :1].expand_as(x)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2), directions=st.integers(1, 3), length=st.integers(1, 40), channels=st.integers(1, 9),
    states=st.integers(1, 17), period=st.integers(0, 42), initial=st.booleans(), plain=st.booleans(),
    layouts=st.tuples(*[st.sampled_from([Tensor.contiguous, scattered, shared, Tensor.clone])] * 3),
)  # fmt: skip
def test_any_shape_and_layout(
    interpreter: ProcessPoolExecutor, batch: int, directions: int, length: int, channels: int, states: int, period: int,
    initial: bool, plain: bool, layouts: tuple[Callable[[Tensor], Tensor], ...],
) -> None:  # fmt: skip
    inputs = random_inputs(batch, directions, length, channels, states, period, initial, plain)
    parts: Any = {
        name: layout(getattr(inputs, name)) for name, layout in zip(("delta", "B", "C"), layouts, strict=True)
    }
    check(interpreter, inputs._replace(**parts, u=scattered(inputs.u)))


class LastSequence:
    """An interpreted kernel of which only the programs of the last batch entry and direction run."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        from triton.runtime.interpreter import interpreter_builder as builder

        def place(*program: int) -> None:
            builder.grid_dim = (*grid, 1)[:3]
            builder.grid_idx = (*program[: len(grid) - 1], grid[-1] - 1, 0)[:3]

        def run(*args: Any, **options: Any) -> None:
            with mock.patch.object(builder, "set_grid_idx", place):
                self.kernel[(*grid[:-1], 1)](*args, **options)

        return run


def scan_the_last(inputs: ScanInputs, grad_y: Tensor, grad_final: Tensor, copies: int) -> dict[str, Tensor]:
    """Outputs and gradients of the last entry of a batch whose others are memory that nobody touches."""

    def last_of_many(x: Tensor) -> Tensor:
        many = torch.empty(copies, *x.shape[1:])
        many[-1:] = x
        return many

    batched = ("u", "delta", "B", "C", "decay", "recap_state", "initial_state")
    many = inputs._replace(**{name: last_of_many(getattr(inputs, name)) for name in batched})  # type: ignore[arg-type]
    plain = Tensor.sum
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(Tensor, "sum", lambda x, dims: plain(x[-1:], dims)))
        for name in KERNELS:
            patches.enter_context(mock.patch.object(kernels, name, LastSequence(getattr(kernels, name))))
        y, final, saved = kernels.forward(many)
        gradients = kernels.backward(last_of_many(grad_y), last_of_many(grad_final), saved, many)
    last = {name: x[-1:].clone() for name, x in gradients.items() if name in batched}
    return {"y": y, "final": final[-1:].clone()} | gradients | last


@pytest.mark.skipif(sys.platform != "linux", reason="memory that nobody touches may count elsewhere")
def test_tensors_of_more_than_2_to_the_31_numbers(interpreter: ProcessPoolExecutor) -> None:
    inputs = random_inputs(1, 1, 2, 2, 2, period=2, initial=True)._replace(skip=None)
    wanted = expected(inputs)
    arguments = inputs, wanted.grad_y, wanted.grad_final, 2**29 + 1  # of 4 numbers each
    found = interpreter.submit(scan_the_last, *arguments).result()
    assert_close(found, wanted.outputs | wanted.gradients, 1e-4)


def scan_far_tokens(inputs: ScanInputs, grad_y: Tensor, grad_final: Tensor) -> dict[str, Tensor]:
    """Outputs and gradients where two tokens lie 2^30 numbers apart."""

    def spread(x: Tensor) -> Tensor:
        far = torch.empty(2**30 * (x.shape[2] - 1) + x.shape[3]).as_strided(x.shape, (1, 1, 2**30, 1))
        return far.copy_(x)

    far = inputs._replace(delta=spread(inputs.delta), B=spread(inputs.B), C=spread(inputs.C))
    y, final, saved = kernels.forward(far)
    return {"y": y, "final": final, **kernels.backward(grad_y, grad_final, saved, far)}


@pytest.mark.skipif(sys.platform != "linux", reason="memory that nobody touches may count elsewhere")
def test_tokens_far_apart(interpreter: ProcessPoolExecutor) -> None:
    inputs = random_inputs(1, 1, 4, 2, 2)
    wanted = expected(inputs)
    found = interpreter.submit(scan_far_tokens, inputs, wanted.grad_y, wanted.grad_final).result()
    assert_close(found, wanted.outputs | wanted.gradients, 1e-4)


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


def check_registration(inputs: ScanInputs) -> None:
    """PyTorch's checks of the operator; for the interpreter's process."""
    for x in inputs.differentiable().values():
        x.requires_grad_()
    torch.library.opcheck(operator._scan, (*inputs, "triton"))
    y, state, saved = (x.detach() for x in operator._scan(*inputs, "triton"))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator._scan_backward, (y, state, saved, *inputs, "triton"), test_utils=tests)


@pytest.mark.slow
def test_registration(interpreter: ProcessPoolExecutor) -> None:
    interpreter.submit(check_registration, random_inputs(1, 2, 3, 2, 4, period=2, initial=True)).result()
