"""The C++ kernels, which run by default on a CPU, against the naive scan in float64; and what runs without them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from model.scan import cpu
from model.scan.inputs import ScanInputs
from tests.model.scan.naive import assert_close, expected, random_inputs

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@contextmanager
def running_on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder for built extensions in which nothing lies, and no library loaded."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    cpu.load_library.cache_clear()
    yield tmp_path / "extensions"
    cpu.load_library.cache_clear()


def check(inputs: ScanInputs, threads: int = 1) -> None:
    wanted = expected(inputs)
    with running_on(threads):
        y, final, saved = cpu.forward(inputs)
        gradients = dict(cpu.backward(wanted.grad_y, wanted.grad_final, saved, inputs).items())
    assert saved.shape == cpu.saved_shape(inputs)
    assert_close({"y": y, "final": final}, wanted.outputs, 1e-5)
    assert_close(gradients, wanted.gradients, 1e-4)


def random_shape(states: int, recap: bool) -> ScanInputs:
    """Odd lengths around the boundary of a chunk; channels around that of a block."""
    batch, directions = (int(torch.randint(1, 4, ())) for _ in range(2))
    length, channels = 2 * int(torch.randint(0, 48, ())) + 1, int(torch.randint(2, 140, ()))
    period = int(torch.randint(1, length + 3, ())) if recap else 0
    print(f"batch {batch}, directions {directions}, length {length}, channels {channels}, period {period}")
    rank, initial = int(torch.randint(0, 7, ())) * int(torch.randint(0, 2, ())), bool(torch.rand(()) < 0.5)
    return random_inputs(batch, directions, length, channels, states, period, initial, rank=rank)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recap", [False, True])
@pytest.mark.parametrize("states", [8, 16, 64])
def test_outputs_states_and_gradients(states: int, recap: bool, threads: int) -> None:
    assert cpu.load_library() is not None
    for _ in range(2):
        check(random_shape(states, recap), threads)


@needs_compiler
def test_without_bias_softplus_and_skip() -> None:
    check(random_inputs(2, 2, 67, 65, 16, plain=True))
    check(random_inputs(1, 4, 65, 64, 16, period=16, initial=True, plain=True))


@needs_compiler
@pytest.mark.parametrize(("batch", "channels", "rank"), [(1, 64, 16), (2, 130, 1), (3, 5, 3)])
def test_time_steps_of_low_rank(batch: int, channels: int, rank: int) -> None:
    check(random_inputs(batch, 2, 67, channels, 16, period=9, rank=rank))
    check(random_inputs(batch, 2, 7, channels, 8, plain=True, rank=rank))


@needs_compiler
def test_large_and_small_steps() -> None:
    """Time steps from 1e-6 to 50: softplus is accurate at both ends, and states that are forgotten leave no trace."""
    inputs = random_inputs(1, 2, 33, 64, 16)
    check(inputs._replace(delta=inputs.delta * 15))


@needs_compiler
def test_results_do_not_depend_on_threads() -> None:
    inputs = random_inputs(2, 4, 67, 130, 16, period=9, rank=2)
    results = []
    for threads in (1, 2):
        with running_on(threads):
            y, final, saved = cpu.forward(inputs)
            results.append([y, final, *dict(cpu.backward(y, final, saved, inputs).items()).values()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_compiler
@pytest.mark.parametrize("wrong", [[0, 0, 1], [0, 1, 3], [-1, 0, 1]])
def test_an_order_that_is_no_permutation_is_refused(wrong: list[int]) -> None:
    inputs = random_inputs(1, 1, 3, 2, 4)
    with pytest.raises(ValueError, match="not a permutation"):
        cpu.forward(inputs._replace(order=torch.tensor([wrong])))


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_plain_pytorch_scans(
    compiler: str, fresh_build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=rf"cannot be built \(.*{compiler}.*install g\+\+"):
        check(random_inputs(2, 2, 67, 3, 8, period=5, initial=True, rank=2))
    assert not list(fresh_build.rglob("*.so"))


@needs_compiler
@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """The scan is built elsewhere, and the warning says why; a file stands where the folder should be."""
    (tmp_path / "home").touch()
    program = """
import torch
from model.scan import cpu
from tests.model.scan.naive import random_inputs
assert cpu.load_library() is not None
print(cpu.forward(random_inputs(1, 1, 5, 3, 4))[0].shape)
"""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "home" / "extensions"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert "torch.Size([1, 5, 3])" in done.stdout, done.stderr
    assert "Not a directory" in done.stderr and "TORCH_EXTENSIONS_DIR" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]  # what was built is gone
