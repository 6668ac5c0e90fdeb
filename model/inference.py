"""Doing less in evaluation, with the same results: folded batch norms and features kept per image."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.build import build_model
from model.methods.hmnet import Embedded, HMNet
from model.released import load_weights
from model.resize import resize
from util.config import Config

MEGABYTE = 2**20


def load_network(cfg: Config, weights: Path | None, device: torch.device) -> HMNet:
    """A config's network, trained or without weights as it starts its training, ready for inference on a device."""
    model = build_model(cfg, pretrained=weights is None)
    if weights:
        load_weights(model, weights)
    return prepare_inference(model.to(device))


def prepare_inference(model: HMNet) -> HMNet:
    """Put `model` in evaluation mode, fold the frozen batch norms in place and lay its weights out channels last.

    A folded model cannot be trained or saved: its frozen layers have other names. Returns the model.
    """
    model.eval()
    fold_batch_norms(model.backbone)
    if model.base_learner is not None:
        fold_batch_norms(model.base_learner)
    return model.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm that is registered right behind a convolution into it, in place, at any depth."""
    names = list(module._modules)
    for name, following in pairwise(names):
        conv, norm = getattr(module, name), getattr(module, following)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, following, getattr(norm, "act", nn.Identity()))  # timm's norms may activate too
    for child in module.children():
        fold_batch_norms(child)


class ImageFeatures(NamedTuple):
    """One image's features, B = 1, in both roles; the two share the levels and the Gram matrix."""

    query: Embedded
    support: Embedded

    def nbytes(self) -> int:
        """Memory held, shared tensors counted once."""
        shared = [*self.query.levels, *([] if self.query.gram is None else [self.query.gram])]
        return sum(x.nbytes for x in (self.query.reduced, self.support.reduced, *shared))


class FeatureCache:
    """Scores episodes with each image's features computed once, as long as they fit in `megabytes`.

    The least recently used image goes first. An image is known by its name, so all calls must use one image size.
    """

    def __init__(self, model: HMNet, megabytes: float) -> None:
        self.model, self.budget = model, megabytes * MEGABYTE
        self.held: OrderedDict[str, ImageFeatures] = OrderedDict()
        self.nbytes = 0

    @torch.inference_mode()
    def scores(self, query: Tensor, support: Tensor, support_mask: Tensor, names: Sequence[Sequence[str]]) -> Tensor:
        """Final scores `(B, 2, H, W)`; arguments as `HMNet.forward`, and `names[b]`: query, then supports."""
        images = torch.cat([query.unsqueeze(1), support], dim=1).flatten(0, 1)
        found = self.features([name for episode in names for name in episode], images)
        per_episode = 1 + support.shape[1]
        queries = [x.query for i, x in enumerate(found) if i % per_episode == 0]
        supports = [x.support for i, x in enumerate(found) if i % per_episode]
        state = self.model.support_state(stack(supports), support_mask)
        return resize(self.model.score(stack(queries), state).final, query.shape[-2:])

    def features(self, names: list[str], images: Tensor) -> list[ImageFeatures]:
        """Features of every image, from memory or from the backbone.

        A new image goes through it alone: how a batch is rounded depends on its size, and the features of an image
        must not depend on which others this process has seen.
        """
        position = {name: i for i, name in enumerate(names)}
        found = {name: self.held.get(name) or self._extract(images[i : i + 1]) for name, i in position.items()}
        for name, features in found.items():
            self._hold(name, features)
        return [found[name] for name in names]

    def _extract(self, image: Tensor) -> ImageFeatures:
        frozen = self.model.features(image)
        return ImageFeatures(self.model.embed(frozen, "query"), self.model.embed(frozen, "support"))

    def _hold(self, name: str, features: ImageFeatures) -> None:
        if name not in self.held:
            self.nbytes += features.nbytes()
        self.held[name] = features
        self.held.move_to_end(name)
        while self.nbytes > self.budget:
            self.nbytes -= self.held.popitem(last=False)[1].nbytes()


def stack(images: Sequence[Embedded]) -> Embedded:
    """Embedded features of single images as those of a batch."""
    reduced, levels, grams = zip(*images, strict=True)
    gram = None if grams[0] is None else torch.cat(grams)
    return Embedded(torch.cat(reduced), tuple(torch.cat(level) for level in zip(*levels, strict=True)), gram)


def merge_classes(margins: Tensor) -> Tensor:
    """Labels (h, w), 0 background and i + 1 class i, of the classes' margins over the background (N, h, w)."""
    best, index = margins.max(0)
    return torch.where(best > 0, index + 1, 0)
