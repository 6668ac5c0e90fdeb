"""The network's stages and whole episodes as things to be measured: random weights, random images."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from engine.optim import autocast
from model.build import build_model, from_config
from model.inference import MEGABYTE, FeatureCache, prepare_inference, stack
from model.methods.hmnet import HMNet
from model.parts.ensemble import gram
from model.parts.mamba import MambaBlock, SelfBlock
from model.parts.order import plain_orders
from tools.measure import count_flops, peak_memory, timed
from util.config import Config

GIGA = 1e9
ROLES: tuple[Literal["query", "support"], ...] = ("query", "support")
SIZES = {473: 64, 633: 80, 793: 100, 953: 120, 1113: 140}  # pixels of the paper's Table 9, and the trunk's grid


class Images(NamedTuple):
    """One episode, B = 1."""

    query: Tensor  # (1, 3, H, H)
    support: Tensor  # (1, K, 3, H, H)
    support_mask: Tensor  # (1, K, H, H)


class Stage(NamedTuple):
    """A part of an episode: what to call, and how often an episode does."""

    name: str
    times: int
    function: Callable[[], Any]
    inside: bool = False  # of a stage before it: not to be added to the sum


def random_images(size: int, shot: int, device: torch.device | None = None) -> Images:
    """Noise of the size of images, normalised as they are, and masks that are half foreground."""
    mask = torch.zeros(1, shot, size, size, device=device)
    mask[..., size // 4 : 3 * size // 4] = 1
    query, support = (torch.randn(1, *shape, size, size, device=device) for shape in ((3,), (shot, 3)))
    return Images(query, support, mask)


def inference_model(cfg: Config) -> HMNet:
    """The network as test.py runs it, but for its weights."""
    return prepare_inference(build_model(cfg, pretrained=False))


def stages(model: HMNet, images: Images) -> Iterator[Stage]:
    """The stages of an episode in their order, on the inputs that they have in this episode."""
    shot = images.support.shape[1]
    query, support = (x.contiguous(memory_format=torch.channels_last) for x in (images.query, images.support[0]))
    f2, _, f4 = model.backbone(query)
    frozen = model.features(query)
    as_query, as_support = model.embed(frozen, "query"), model.embed(model.features(support), "support")
    with Captured(model) as captured:
        state = model.support_state(as_support, images.support_mask)
        model.score(as_query, state)
    q, s = captured["merge_query"], captured["merge_support"]
    refined = model.trunk(q, state.memories)

    yield Stage("backbone, one image", 1 + shot, lambda: model.backbone(query))
    if learner := model.base_learner:
        yield Stage("base learner, one image", 1 + shot, lambda: learner.features(f4))
        yield Stage("Gram matrix, one image", 1 + shot, lambda: gram(f2))
    yield Stage("embedding for both roles, one image", 1 + shot, lambda: [model.embed(frozen, role) for role in ROLES])
    yield Stage("prior", 1, lambda: model.prior(as_query.levels, state.levels))
    yield Stage("trunk, support", 1, lambda: model.trunk.encode_support(s))
    yield Stage("trunk, query", 1, lambda: model.trunk(q, state.memories))
    block = next(iter(model.trunk.blocks), None)
    if isinstance(block, MambaBlock):
        count = len(model.trunk.blocks)
        yield Stage("projections and MLP of one block", count, products(block, model.feature_size), inside=True)
        yield Stage("scan of one block", count, scan_alone(block, model.feature_size), inside=True)
    yield Stage("decoder", 1, lambda: model.decode(refined))
    if model.base_learner:
        meta = model.decode(q)
        yield Stage("ensemble", 1, lambda: model.ensemble(meta, as_query, state))


class Captured(dict[str, Tensor]):
    """Within the block, what leaves the trunk's two embeddings, channels last, under their names."""

    def __init__(self, model: HMNet) -> None:
        super().__init__()
        self.modules = {name: getattr(model.embedding, name) for name in ("merge_query", "merge_support")}

    def __enter__(self) -> "Captured":
        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _inputs, out: self.update({name: out.permute(0, 2, 3, 1)})

        self.hooks = [module.register_forward_hook(keep(name)) for name, module in self.modules.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def products(block: MambaBlock, size: int) -> Callable[[], Any]:
    """The matrix products of one block's query, `size` x `size` tokens: around the scan, and its MLP."""
    branch, scan = block.query, block.scan
    device = scan.skip.device
    inner = torch.randn(1, size**2, branch.out_proj.in_features, device=device)
    x = torch.randn(1, size**2, branch.out_proj.out_features, device=device)

    def run() -> None:
        F.linear(x, branch.in_proj.weight)
        scan.project(inner)
        branch.out_proj(inner)
        branch.mlp(x)

    return run


def scan_alone(block: MambaBlock, size: int, backend: str | None = None) -> Callable[[], Any]:
    """One block's scan of `size` x `size` tokens in four directions; `backend`: the block's own if None."""
    scan = block.scan
    device = scan.skip.device
    tokens, order = scan.project(torch.randn(1, size**2, scan.skip.shape[1], device=device)), plain_orders(size, device)
    scan.backend = backend or scan.backend
    return lambda: scan(tokens, order)


class MeasuredEpisode:
    """One episode through a cache of features that is empty or full."""

    def __init__(self, model: HMNet, images: Images) -> None:
        self.model, self.images = model, images
        self.names = [["query", *(f"support {k}" for k in range(images.support.shape[1]))]]
        self.cache = FeatureCache(model, math.inf)

    def cold(self) -> Tensor:
        """With images never seen before."""
        self.cache = FeatureCache(self.model, math.inf)
        return self.cached()

    def cached(self) -> Tensor:
        """With images whose features are at hand, once it was cold."""
        return self.cache.scores(*self.images, self.names)

    def known_support(self) -> Callable[[], Tensor]:
        """Once it was cold: the query's features at hand and nothing of the support left to compute."""
        query, *supports = self.cache.held.values()
        state = self.model.support_state(stack([x.support for x in supports]), self.images.support_mask)
        return lambda: self.model.score(query.query, state).resize(self.images.query.shape[-2:]).final


@torch.inference_mode()
def stage_gflops(cfg: Config) -> dict[str, float]:
    """What every stage needs, by its name; nothing is computed."""
    model = inference_model(as_operator(cfg))
    with FakeTensorMode(allow_non_fake_inputs=True):
        parts = stages(model, random_images(cfg.val_size, cfg.shot))
        return {stage.name: count_flops(stage.function) / GIGA for stage in parts}


@torch.inference_mode()
def episode_gflops(cfg: Config) -> dict[str, float]:
    """What a whole episode needs, cold and cached; nothing is computed."""
    model = inference_model(as_operator(cfg))
    with FakeTensorMode(allow_non_fake_inputs=True):
        episode = MeasuredEpisode(model, random_images(cfg.val_size, cfg.shot))
        return {"gflop": count_flops(episode.cold) / GIGA, "cached_gflop": count_flops(episode.cached) / GIGA}


def as_operator(cfg: Config) -> Config:
    """The same network with its scan as one operator, as operations are counted by operator."""
    return cfg.model_copy(update={"scan": "cpu"})


@torch.inference_mode()
def measure_stages(cfg: Config, repeats: int) -> list[dict[str, Any]]:
    """Seconds of every stage; to be called in a process of its own."""
    rows = []
    for stage in stages(inference_model(cfg), random_images(cfg.val_size, cfg.shot)):
        seconds, median = timed(stage.function, repeats)
        rows.append({**stage._asdict(), "seconds": seconds, "median": median})
        del rows[-1]["function"]
    return rows


@torch.inference_mode()
def measure_scan(cfg: Config, backend: str, repeats: int) -> dict[str, Any]:
    """One block's scan alone by one backend; the slow one is called once, without warming up."""
    function = scan_alone(from_config(SelfBlock, cfg), cfg.feature_size, backend)
    seconds, median = timed(function, repeats, warm_ups=int(backend != "reference"))
    return {"backend": backend, "seconds": seconds, "median": median, "tokens": cfg.feature_size**2}


@torch.inference_mode()
def measure_episodes(cfg: Config, sizes: Mapping[int, int], repeats: int) -> list[dict[str, Any]]:
    """Whole episodes as test.py runs them, for each image size and its side of the trunk's grid, smallest first.

    Cold, with the features of the images at hand, and with the support known. To be called in a process of its own,
    whose peak memory is then that of the largest episode so far.
    """
    model, rows = inference_model(cfg), []
    for size, model.feature_size in sizes.items():
        episode = MeasuredEpisode(model, random_images(size, cfg.shot))
        with autocast(cfg.amp, torch.device("cpu")):
            seconds, median = timed(episode.cold, repeats)
            row = {"size": size, "feature_size": model.feature_size, "cold": seconds, "cold_median": median}
            row["peak_memory_mb"] = peak_memory() / MEGABYTE
            row["cached"] = timed(episode.cached, repeats, warm_ups=0).minimum
            row["known_support"] = timed(episode.known_support(), repeats, warm_ups=0).minimum
        rows.append(row)
    return rows
