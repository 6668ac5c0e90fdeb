"""The ensemble of meta and base predictions (BAM, CVPR 2022, section 3.4)."""

import torch
from torch import Tensor, nn


def gram(features: Tensor) -> Tensor:
    """Normalised Gram matrices `(B, C, C)` of `features (B, C, h, w)`: cosines between channels."""
    x = features.flatten(2)
    norms = x.norm(dim=2)
    return x @ x.transpose(1, 2) / (norms.unsqueeze(2) * norms.unsqueeze(1) + 1e-7)


def scene_difference(query: Tensor, support: Tensor) -> Tensor:
    """How different the scenes are, `(B, K)`: Gram matrices `(B, C, C)` against `(B, K, C, C)` (BAM, equation 5)."""
    return (query.unsqueeze(1) - support).flatten(2).norm(dim=2) / support.shape[-1]


def base_map(base_logits: Tensor, episode_class: Tensor | None = None) -> Tensor:
    """Probability of any base class, `(B, 1, f, f)`, from base logits `(B, 1 + n, f, f)`.

    `episode_class (B,)`, given in training, is the 0-based base class that the episode itself is about.
    """
    probability = base_logits.softmax(1)[:, 1:]
    total = probability.sum(1, keepdim=True)
    if episode_class is None:
        return total
    return total - probability.gather(1, episode_class.view(-1, 1, 1, 1).expand_as(total))


class ShotWeights(nn.Module):
    """Weights over the shots from their scene differences (BAM, section 3.5).

    Args: K; the hidden size, 0 for one linear layer that starts as the mean; `unsort`: return each weight to the shot
    whose value it was made from (BAM's intent) or leave the weights in ascending order of the values, as the released
    weights expect.
    """

    def __init__(self, shot: int, hidden: int = 2, unsort: bool = False) -> None:
        super().__init__()
        self.shot, self.unsort = shot, unsort
        if hidden:
            self.transform: nn.Module = nn.Sequential(nn.Conv2d(shot, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, shot, 1))
        else:
            self.transform = nn.Conv2d(shot, shot, 1, bias=False)
            nn.init.constant_(self.transform.weight, 1 / shot)

    def forward(self, difference: Tensor) -> Tensor:
        """Scene differences `(B, K)` to weights `(B, K)` that sum to 1; ValueError for another number of shots."""
        if difference.shape[1] != self.shot:
            raise ValueError(f"the ensemble was built for {self.shot} shots and was given {difference.shape[1]}")
        ordered, position = difference.sort(dim=1)
        weights = self.transform(ordered[..., None, None]).flatten(1).softmax(1)
        return torch.zeros_like(weights).scatter(1, position, weights) if self.unsort else weights


class Ensemble(nn.Module):
    """Adjusts the meta probabilities by the scene difference, and the background by the base classes.

    Args: K, and `ShotWeights`' hidden size and `unsort`. Built for one shot, it takes the mean over any number of them.
    """

    def __init__(self, shot: int, hidden: int = 2, unsort: bool = False) -> None:
        super().__init__()
        self.shot = shot
        self.shot_weights = ShotWeights(shot, hidden, unsort) if shot > 1 else None
        self.gram_merge = _pair_merge()
        self.base_merge = _pair_merge()

    def chosen(self, shots: int) -> list[int]:
        """Which of so many shots count: all, or as many as it was built to weigh, the first ones or repeated."""
        return [number % shots for number in range(shots if self.shot == 1 else self.shot)]

    def weights(self, difference: Tensor) -> Tensor:
        """Weights over the shots `(B, K)`, which sum to 1, from their scene differences `(B, K)`."""
        if self.shot_weights is None:
            return torch.full_like(difference, 1 / difference.shape[1])
        return self.shot_weights(difference)

    def forward(self, meta_logits: Tensor, base: Tensor, difference: Tensor) -> Tensor:
        """Meta logits `(B, 2, f, f)`, base map `(B, 1, f, f)`, scene differences `(B, K)` to scores `(B, 2, f, f)`."""
        weights = self.weights(difference)
        difference = (weights * difference).sum(1) if self.shot_weights else difference.mean(1)
        difference = difference.view(-1, 1, 1, 1).expand_as(base)
        background, foreground = meta_logits.softmax(1).split(1, dim=1)
        background = self.gram_merge(torch.cat([background, difference], dim=1))
        foreground = self.gram_merge(torch.cat([foreground, difference], dim=1))
        background = self.base_merge(torch.cat([background, base], dim=1))
        return torch.cat([background, foreground], dim=1)


def _pair_merge() -> nn.Conv2d:
    merge = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        merge.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    return merge
