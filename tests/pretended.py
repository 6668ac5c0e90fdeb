"""A GPU that is not there: tensors in memory that say they are on one, which autocast and checks of devices believe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
ATEN = torch.ops.aten


class Pretended(Tensor):
    """A tensor that says its device is CUDA; `held` has its numbers, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        pretended = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=CUDA, **layout)
        pretended.held = held
        return pretended

    def tolist(self) -> Any:
        """As in Tensor."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore
        """As in PretendingMode, outside of which no new tensors appear on CUDA."""
        return dispatch(func, args, kwargs or {})


class PretendingMode(TorchDispatchMode):
    """Tensors that are made on CUDA or moved there are pretended."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As in TorchDispatchMode."""
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function of ATen with the tensors held; AssertionError where a GPU would meet a tensor of the CPU."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    pretended = {id(x.held): x for x in tensors if isinstance(x, Pretended)}
    stray = [x.shape for x in tensors if x.dim() and not isinstance(x, Pretended)]
    moves = func in (ATEN.copy_.default, ATEN._to_copy.default)
    assert moves or not (pretended and stray), f"{func} is given tensors of the GPU and, {stray}, of the CPU"
    target = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.device)), CUDA if pretended else CPU)
    if torch.Tag.inplace_view in func.tags:  # such as squeeze_, which changes the shape that is told
        with no_dispatch():
            func(*args, **kwargs)
    args, kwargs = tree_map_only(torch.device, lambda _: CPU, (args, kwargs))
    args, kwargs = tree_map_only(Pretended, lambda x: x.held, (args, kwargs))
    if func in (ATEN._softmax.default, ATEN._log_softmax.default) and args[2]:
        args = (args[0].float(), args[1], False)  # a CPU has none from half to float
    out = func(*args, **kwargs)
    if target == CPU:
        return out
    return tree_map_only(Tensor, lambda x: pretended[id(x)] if id(x) in pretended else Pretended(x), out)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Within the block tensors can be made on CUDA and moved there, and autocast takes it for real."""
    torch._C._ensureCUDADeviceGuardSet()  # one that does nothing
    torch._C._set_only_lift_cpu_tensors(True)  # what is made of lists is moved by the mode
    try:
        with (
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            mock.patch("torch.cuda._lazy_init", lambda: None),
            torch.backends.cudnn.flags(enabled=False),
            PretendingMode(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def moved(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the pretended GPU."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Pretended(parameter.data), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Pretended(buffer)
    return module
