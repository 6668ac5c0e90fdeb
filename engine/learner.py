"""What learns, and one step of it: gradients that do not depend on how a batch is spread over processes and rounds."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from engine.loader import Batch
from engine.optim import amp_dtype
from model.released import load_weights
from util.distributed import World
from util.pixels import IGNORE

Tensors = dict[str, Tensor]


class Output(NamedTuple):
    """What the network made of one batch."""

    pixel_loss: Tensor  # scalar, a mean over the pixels that are not ignored
    item_loss: Tensor  # scalar, a mean over the items of the batch
    hits: Tensor  # (2,) int64, a count and what it is a part of, for the log


Forward = Callable[[nn.Module, Tensors], Output]


class Report(NamedTuple):
    """One step over all processes."""

    pixel_loss: float
    item_loss: float
    hits: int
    of: int

    @property
    def loss(self) -> float:
        """What was minimised."""
        return self.pixel_loss + self.item_loss


class NotFiniteError(Exception):
    """The loss is NaN or infinite; the message says on which items."""


class Learner:
    """A model on its device with its optimisers, on all processes; `amp` and `compiled` are the config keys.

    `partial`: some of the model's parameters get no gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        world: World,
        amp: str = "off",
        compiled: bool = False,
        partial: bool = False,
    ) -> None:
        if compiled:
            model.compile()
        self.model, self.optimizers, self.world = model, optimizers, world
        self.network = world.parallel(model, partial)
        self.dtype = amp_dtype(amp, world.device)
        self.scaler = GradScaler(world.device.type, enabled=self.dtype is torch.float16)

    def accumulate(self, batches: Sequence[Batch], forward: Forward, target: str) -> Report:
        """Add the gradients of the loss of one large batch, made of the batches of all processes, to the parameters.

        A mean of means is not the mean when batches differ in ignored pixels, so every batch's pixel loss gets the
        share of valid pixels that it has in all; `target` is the key of the masks in which they are counted.
        Raises NotFiniteError in all processes when the loss is not finite in any, the model being as it was before.
        """
        world = self.world
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # batch norms take in what they see
        valid = torch.tensor([int((batch[target] != IGNORE).sum()) for batch in batches])
        share = valid.double() * world.size / world.sum(valid.sum())  # DDP divides by world.size
        losses, hits = torch.zeros(2, device=world.device), torch.zeros(2, dtype=torch.int64, device=world.device)
        for number, batch in enumerate(batches):
            with self._no_sync() if number < len(batches) - 1 else nullcontext():
                with torch.autocast(world.device.type, self.dtype, enabled=self.dtype is not None):
                    output = forward(self.network, to_device(batch, world.device))
                parts = torch.stack([output.pixel_loss * share[number].item(), output.item_loss / len(batches)])
                self.scaler.scale(parts.sum()).backward()
            losses += parts.detach()
            hits += output.hits
        blame = [] if losses.isfinite().all() else [" ".join(item) for batch in batches for item in batch["names"]]
        losses = world.sum(losses) / world.size
        if not losses.isfinite().all():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            guilty = [names for process in world.gather(blame) for names in process]
            raise NotFiniteError(f"the loss is not finite on these items: {'; '.join(guilty)}")
        return Report(*losses.tolist(), *world.sum(hits).tolist())

    def _no_sync(self) -> Any:
        return self.network.no_sync() if self.world.size > 1 else nullcontext()  # type: ignore[operator]

    def step(self) -> None:
        """Step every optimiser with the gradients as they are, then forget those."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Weights and the state of optimisers and scaler, for a snapshot."""
        return {
            "state_dict": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned; ValueError when it is not of this model and these optimisers."""
        load_weights(self.model, state["state_dict"])
        for optimizer, content in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
