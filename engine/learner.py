"""What learns, and one step of it: gradients that do not depend on how a batch is spread over processes and rounds."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import get_total_norm, parameters_to_vector
from torch.optim import Optimizer

from engine.loader import Batch
from engine.optim import amp_dtype, autocast
from model.released import checkpoint_state, load_weights
from util.distributed import ProcessGroup
from util.pixels import IGNORE
from util.rng import seed_all

Tensors = dict[str, Tensor]


class Output(NamedTuple):
    """What the network made of one batch, by name: losses, whose sum is minimised, and metrics for the log."""

    losses: Mapping[str, Tensor]  # scalars, means over the pixels that are not ignored
    metrics: Mapping[str, Tensor]  # (2,) int64 each, a count and what it is a part of
    item_means: Collection[str] = ()  # the losses that are means over the items of the batch instead


Forward = Callable[[nn.Module, Tensors], Output]


class Report(NamedTuple):
    """One step over all processes; empty when its loss was not finite and it will be skipped."""

    losses: dict[str, float]
    metrics: dict[str, tuple[int, int]]

    @property
    def loss(self) -> float:
        """What was minimised."""
        return sum(self.losses.values())


class NotFiniteError(Exception):
    """A loss or gradient is NaN or infinite; the message says on which items."""


class Learner:
    """A model on its device with its optimisers by name, on all processes; `amp` and `compiled` are the config keys.

    `partial`: some of the model's parameters get no gradient. `max_skipped`: so many steps in a row whose loss or
    gradient overflows under fp16 are skipped, each time with a smaller scale of the gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Mapping[str, Optimizer],
        process_group: ProcessGroup,
        amp: str = "off",
        compiled: bool = False,
        partial: bool = False,
        max_skipped: int = 1,
    ) -> None:
        if compiled:
            model.compile()
        self.model, self.optimizers, self.process_group = model, optimizers, process_group
        self.network = process_group.parallel(model, partial)
        self.amp, self.max_skipped = amp, max_skipped
        self.scaler = GradScaler(
            process_group.device.type, enabled=amp_dtype(amp, process_group.device) is torch.float16
        )
        self.skipped, self.problem = 0, ""  # steps skipped in a row, and why the last step was if it was
        self.buffers: list[Tensor] = []  # before the step: batch norms take in what they see
        self.names: list[str] = []  # of the step's items in this process

    def accumulate(
        self, batches: Sequence[Batch], forward: Forward, target: str, seeds: Sequence[int] | None = None
    ) -> Report:
        """Add the gradients of the loss of one large batch, made of the batches of all processes, to the parameters.

        A mean of means is not the mean when batches differ in ignored pixels, so every batch's means over pixels get
        the share of valid pixels that it has in all; `target` is the key of the masks in which they are counted.
        `seeds`, one a batch, are those of dropout and the like; without them all draw from one stream.
        Raises NotFiniteError in all processes when the loss is not finite in any, the model being as it was before.
        """
        process_group = self.process_group
        self.problem = ""
        self.buffers = [buffer.clone() for buffer in self.model.buffers()]
        self.names = [" ".join(item) for batch in batches for item in batch["names"]]
        valid = torch.tensor([int((batch[target] != IGNORE).sum()) for batch in batches])
        total = process_group.all_reduce(valid.sum()).clamp(min=1)  # 0 where all pixels are ignored
        share = valid.double() * process_group.size / total  # DDP divides by the size
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            if seeds is not None:
                seed_all(seeds[number])
            with self._no_sync() if number < len(batches) - 1 else nullcontext():
                with autocast(self.amp, process_group.device):
                    output = forward(self.network, to_device(batch, process_group.device))
                weight = {name: 1 / len(batches) for name in output.item_means}
                parts = {name: loss * weight.get(name, share[number].item()) for name, loss in output.losses.items()}
                self.scaler.scale(torch.stack([*parts.values()]).sum()).backward()
            losses = {name: losses.get(name, 0) + part.detach() for name, part in parts.items()}
            metrics = {name: metrics.get(name, 0) + counts for name, counts in output.metrics.items()}
        values = torch.stack([*losses.values()])
        finite = bool(values.isfinite().all())
        values = process_group.all_reduce(values) / process_group.size
        if not values.isfinite().all():
            self._skip_or_raise("loss", [] if finite else self.names)
            return Report({}, {})
        counts = process_group.all_reduce(torch.stack([*metrics.values()])).tolist()
        return Report(
            dict(zip(losses, values.tolist(), strict=True)), dict(zip(metrics, map(tuple, counts), strict=True))
        )

    def _no_sync(self) -> Any:
        return self.network.no_sync() if self.process_group.size > 1 else nullcontext()  # type: ignore[operator]

    def _skip_or_raise(self, what: str, names: list[str]) -> None:
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        guilty = [name for process in self.process_group.gather(names) for name in process]
        self.problem = f"the {what} is not finite on these items: {'; '.join(guilty)}"
        if not self.scaler.is_enabled() or self.skipped >= self.max_skipped:
            raise NotFiniteError(self.problem)

    def step(self) -> dict[str, float]:
        """Step every optimiser with the gradients as they are, then forget those; sizes by optimiser for the log.

        gradient/NAME is the norm of the gradient, update/NAME that of the change relative to the parameters.
        Where fp16 overflowed, the optimisers that it reaches stay as they are and the gradient's scale is lowered.
        Raises NotFiniteError in all processes for a gradient that is not finite where `accumulate` would for a loss.
        """
        sizes = {}
        if self.problem:
            self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())
        else:
            sizes = self._step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return sizes

    def _step(self) -> dict[str, float]:
        learnt = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            for name, optimizer in self.optimizers.items()
        }
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norms = {name: get_total_norm([p.grad for p in params]) for name, params in learnt.items()}
        if all(norm.isfinite() for norm in norms.values()):
            self.skipped = 0
        else:
            self._skip_or_raise("gradient", self.names)
        with torch.no_grad():
            before = {name: parameters_to_vector(params) for name, params in learnt.items()}
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            self.scaler.update()
            moved = {
                name: (parameters_to_vector(p) - before[name]).norm() / before[name].norm()
                for name, p in learnt.items()
            }
        sizes = {f"gradient/{name}": norm for name, norm in norms.items()}
        sizes |= {f"update/{name}": size for name, size in moved.items()}
        return {name: size.item() for name, size in sizes.items()}

    def state(self) -> dict[str, Any]:
        """Weights and the state of optimisers and scaler, for a snapshot."""
        return {
            "state_dict": checkpoint_state(self.model),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers.values()],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned; ValueError when it is not of this model and these optimisers."""
        load_weights(self.model, state["state_dict"])
        for optimizer, content in zip(self.optimizers.values(), state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors, and those by name in it, on the device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(child) for key, child in value.items()}
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return {key: moved(value) for key, value in batch.items()}
