"""Doing less in evaluation, with the same results: folded batch norms and features kept per image."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.build import build_model
from model.methods.method import Features, Method, Role, Scores
from model.released import load_weights
from model.tensors import concatenate, nbytes
from util.config import Config

MEGABYTE = 2**20


def load_network(cfg: Config, weights: Path | None, device: torch.device) -> Method:
    """A config's method, trained or without weights as it starts its training, ready for inference on a device."""
    model = build_model(cfg, pretrained=weights is None)
    if weights:
        load_weights(model, weights)
    return prepare_inference(model.to(device))


def prepare_inference(model: Method) -> Method:
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


class FeatureCache:
    """Scores episodes with each image's features computed once, as long as they fit in `megabytes`.

    The least recently used image goes first. An image is known by its name, so all calls must use one image size.
    """

    def __init__(self, method: Method, megabytes: float) -> None:
        self.method, self.budget = method, megabytes * MEGABYTE
        # By name and role, or by name alone with both roles in one entry where their frozen features are the same.
        self.held: OrderedDict[tuple[str, Role | None], dict[str, Features]] = OrderedDict()
        self.nbytes = 0

    @torch.inference_mode()
    def scores(self, query: Tensor, support: Tensor, support_mask: Tensor, names: Sequence[Sequence[str]]) -> Scores:
        """Scores at the method's own size; arguments as `Method.forward`, and `names[b]`: query, then supports."""
        queries = self.embedded([episode[0] for episode in names], query, "query")
        supports = [name for episode in names for name in episode[1:]]
        state = self.method.support_state(self.embedded(supports, support.flatten(0, 1), "support"), support_mask)
        return self.method.score(queries, state)

    def embedded(self, names: Sequence[str], images: Tensor, role: Role) -> Features:
        """Embedded features of images in a role, as of one batch, from memory or from the backbone.

        A new image goes through it alone: how a batch is rounded depends on its size, and the features of an image
        must not depend on which others this process has seen.
        """
        found = {}
        for number, name in enumerate(names):
            if name not in found:
                found[name] = self._entry(name, images[number : number + 1], role)[role]
        return concatenate([found[name] for name in names])

    def _entry(self, name: str, image: Tensor, role: Role) -> dict[str, Features]:
        key = name, role if self.method.features_by_role else None
        entry = self.held.get(key)
        if entry is None:
            features = self.method.features(image, role)
            roles: tuple[Role, ...] = (role,) if self.method.features_by_role else ("query", "support")
            entry = self.held[key] = {one: self.method.embed(features, one) for one in roles}
            self.nbytes += nbytes(entry)
        self.held.move_to_end(key)
        while self.nbytes > self.budget:
            self.nbytes -= nbytes(self.held.popitem(last=False)[1])
        return entry


def merge_classes(margins: Tensor) -> Tensor:
    """Labels (h, w), 0 background and i + 1 class i, of the classes' margins over the background (N, h, w)."""
    if len(margins) == 1:
        return (margins[0] > 0).long()
    best, index = margins.max(0)
    return torch.where(best > 0, index + 1, 0)
