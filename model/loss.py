"""Training losses."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from model.resize import resize
from util.pixels import IGNORE

if TYPE_CHECKING:  # methods import this module
    from model.methods.method import Scores

ITEM_MEANS = frozenset({"dice"})  # losses that are means over the items of a batch, the others over unignored pixels


def episode_loss(scores: "Scores", query_mask: Tensor) -> dict[str, Tensor]:
    """The losses by name, scalars whose sum is minimised; `query_mask (B, H, W)` in {0, 1, 255}.

    The final scores are probabilities and still go through the cross-entropy's softmax, as in the released code.
    """
    return {"cross_entropy": cross_entropy(scores.final, query_mask), "dice": dice_loss(scores.meta, query_mask)}


def ensemble_losses(scores: "Scores", truth: Tensor, base_truth: Tensor | None) -> dict[str, Tensor]:
    """BAM's losses by name; the base learner's, where its truth is known, is constant: nothing under it learns."""
    losses = {"final": cross_entropy(scores.final, truth), "meta": cross_entropy(scores.meta, truth)}
    if base_truth is not None and scores.base is not None:
        losses["base"] = cross_entropy(resize(scores.base, base_truth.shape[-2:]), base_truth)
    return losses


def cross_entropy(logits: Tensor, target: Tensor, ignore: int = IGNORE) -> Tensor:
    """Mean over the pixels that are not ignored, 0 where all are; `logits (B, C, H, W)`, `target (B, H, W)`."""
    total = F.cross_entropy(logits, target, ignore_index=ignore, reduction="sum")
    return total / (target != ignore).sum().clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, ignore: int = IGNORE) -> Tensor:
    """Dice loss (Milletari et al., 2016) over both channels of `logits (B, 2, H, W)`.

    `target (B, H, W)` in {0, 1, ignore}. Ignored pixels belong to neither channel's target but do count in the
    prediction. Summed over channels, mean over B.
    """
    probability = logits.sigmoid().flatten(2)
    valid = target != ignore
    one_hot = F.one_hot(target * valid, 2).permute(0, 3, 1, 2) * valid.unsqueeze(1)
    wanted = one_hot.to(probability.dtype).flatten(2)
    overlap = (wanted * probability).sum(2)
    total = (probability**2).sum(2) + (wanted**2).sum(2)
    return (1 - 2 * overlap / total.clamp(min=1e-8)).sum(1).mean()
