"""Segment images of one's own: the supports once, then any number of queries.

predictor = Predictor.from_checkpoint("config.yaml", "best_1shot.pth")
predictor.set_support(["cat1.jpg", "cat2.jpg"], ["cat1.png", "cat2.png"])
prediction = predictor.predict("holiday.jpg")
prediction.mask, prediction.probability, prediction.score
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.transform import fit_image, fit_mask
from engine.optim import autocast
from model.build import build_model, load_frozen_parts
from model.inference import FeatureCache, merge_classes, prepare_inference
from model.methods import find_method
from model.methods.method import Features, Method, Role, Scores, State
from model.released import load_weights
from model.tensors import expand
from prediction.drawing import draw_overlay
from prediction.masks import MaskSource, as_lists, is_single, object_mask
from prediction.outlines import sharpen
from prediction.shared import add_backbone, open_shared
from prediction.stream import segment
from prediction.support import SINGLE
from prediction.tiles import STRIP, Tiling, check_tiling, predict_tiles, window_of
from util.config import Config, load_config
from util.distributed import pick_device
from util.errors import UserError
from util.image import RGB, ImageSource, normalise, read_image
from util.pixels import IGNORE
from util.visualize import class_color, save_index

DEFAULT_CONFIG = Path(__file__).parent.parent / "config" / "predict.yaml"
MAX_CACHED_SUPPORTS = 64  # classes of support that are remembered
AVERAGING_FACTOR = 2  # times the network's size above which images are averaged down, not sampled


class Found(NamedTuple):
    """One class found in one image."""

    name: str
    value: int  # in the mask
    area: int  # pixels
    score: float  # mean probability of the class over those pixels
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive


class Region(NamedTuple):
    """Some pixels of an image, and the probabilities in it."""

    area: int  # pixels
    inside: float  # sum of the probabilities
    outside: float  # that of all other pixels
    highest: float  # of all probabilities
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive

    @property
    def score(self) -> float:
        """Mean probability inside, 0 where no pixel is."""
        return self.inside / max(1, self.area)


@dataclass(frozen=True)
class Prediction:
    """What is where in one image, at its own size."""

    names: tuple[str, ...]
    mask: NDArray[np.uint8]  # (h, w): 0 background, i + 1 where names[i] is
    class_probabilities: NDArray[np.float32]  # (classes, h, w); together with the background's they are 1

    @property
    def probability(self) -> NDArray[np.float32]:
        """Of any of the classes, (h, w)."""
        return np.asarray(self.class_probabilities.sum(0))

    @property
    def score(self) -> float:
        """Mean probability over the pixels that were found, 0 if there are none: how sure, not how right."""
        return self._region().score

    @property
    def certainty(self) -> float:
        """The mask's IoU if all probabilities held; where nothing is found, one minus the highest of them."""
        region = self._region()
        return region.inside / (region.area + region.outside) if region.area else 1 - region.highest

    @property
    def is_found(self) -> bool:
        """Whether any pixel is of any class."""
        return bool(self.mask.any())

    def at(self, threshold: float) -> "Prediction":
        """The same with another threshold than 0.5 for the likeliest class against the background alone."""
        if threshold == 0.5:
            return self
        mask = np.empty_like(self.mask)
        for _, rows in self._strips():
            probabilities = self.class_probabilities[:, rows]
            best, background = probabilities.max(0), 1 - probabilities.sum(0)
            likeliest = probabilities.argmax(0) + 1 if len(probabilities) > 1 else 1
            mask[rows] = np.where(best > threshold * (best + background), likeliest, 0)
        return replace(self, mask=mask)

    def found(self) -> list[Found]:
        """The classes with a pixel, in the order of `names`."""
        regions = [(value, name, self._region(value)) for value, name in enumerate(self.names, 1)]
        return [Found(name, value, one.area, one.score, one.box) for value, name, one in regions if one.area]

    def _strips(self) -> Iterator[tuple[int, slice]]:
        """The rows in parts of some million pixels, so that a large image needs no copies of itself; their first."""
        rows = max(1, STRIP // self.mask.shape[1])
        return ((top, slice(top, top + rows)) for top in range(0, len(self.mask), rows))

    def _region(self, value: int = 0) -> Region:
        """Of a class by its value in the mask, or with 0 of all together."""
        area, inside, outside, highest = 0, 0.0, 0.0, 0.0
        boxes = np.empty((0, 4), int)
        for top, rows in self._strips():
            of_class = slice(value - 1, value) if value else slice(None)
            probability = self.class_probabilities[of_class, rows].sum(0, dtype=np.float64)
            mask = self.mask[rows] == value if value else self.mask[rows] > 0
            area += int(np.count_nonzero(mask))
            within = float(probability.sum(where=mask))
            inside, outside = inside + within, outside + float(probability.sum()) - within
            highest = max(highest, float(probability.max()))
            left, upper, width, height = cv2.boundingRect(mask.view(np.uint8))
            if width:
                boxes = np.vstack([boxes, [left, top + upper, left + width, top + upper + height]])
        left, top = boxes[:, :2].min(0, initial=self.mask.size).tolist()
        right, bottom = boxes[:, 2:].max(0, initial=0).tolist()
        return Region(area, inside, outside, highest, (left, top, right, bottom))

    def overlay(self, image: ImageSource) -> RGB:
        """Drawn on its image, with a legend below; the longer side has 320 to 2,000 pixels."""
        entries = [(class_color(item.value), f"{item.name} {item.score:.2f}") for item in self.found()]
        return draw_overlay(read_image(image), self.mask, entries)

    def save(self, path: str | Path) -> None:
        """Write the mask as an index PNG, whole or not at all; missing folders are made."""
        save_index(Path(path), self.mask)


class Predictor:
    """Segments in images what support images show.

    Args: a network, which is folded in place; the side of the square that it sees; the number of shots that it was
    trained with; device; config key `amp`; megabytes for the features of images, to know them when they come again;
    config key `sharpen`.
    """

    def __init__(
        self,
        model: Method,
        size: int,
        shot: int,
        device: torch.device,
        amp: str = "off",
        cache_mb: float = 0,
        sharpens: bool = False,
    ) -> None:
        self.model, self.size, self.shot, self.device = prepare_inference(model.to(device)), size, shot, device
        self.amp, self.sharpens = amp, sharpens
        self.states: dict[str, State] = {}
        self.cache = FeatureCache(self.model, cache_mb)
        self.known: dict[str, State] = {}  # by what the supports show, the latest MAX_CACHED_SUPPORTS

    @classmethod
    def from_checkpoint(
        cls, config: Config | str | Path, weights: str | Path, device: str = "auto", cache_mb: float = 0
    ) -> "Predictor":
        """A predictor of a trained network; UserError where config, weights or device are not what they should be."""
        cfg = config if isinstance(config, Config) else load_config(config)
        model = build_model(cfg, pretrained=False)
        load_weights(model, add_backbone(cfg, model, weights))
        return cls(
            model, cfg.val_size, cfg.trained_shot or cfg.shot, pick_device(device), cfg.amp, cache_mb, cfg.sharpen
        )

    @classmethod
    def from_method(
        cls, name: str, config: Config | str | Path | None = None, device: str = "auto", cache_mb: float = 0
    ) -> "Predictor":
        """A predictor of a training-free method, which needs no checkpoint: `prototype`, `prior`, ...

        Its backbone and sizes are those of `config`, by default config/predict.yaml. UserError for a method that is
        trained, and where the backbone's weights are missing.
        """
        cfg = config if isinstance(config, Config) else load_config(config or DEFAULT_CONFIG)
        cfg = cfg.model_copy(update={"arch": name})
        model = build_model(cfg, pretrained=False)
        if model.is_trained:
            raise UserError(f"{name}: is a trained method and needs weights; name them by --weights FILE")
        load_frozen_parts(model, cfg)
        return cls(model, cfg.val_size, cfg.shot, pick_device(device), cfg.amp, cache_mb, cfg.sharpen)

    def with_method(self, name: str, cfg: Config) -> "Predictor":
        """The same backbone under another training-free method, with its supports still to be set."""
        method = find_method(name).build(cfg.model_copy(update={"arch": name}), self.model.backbone, None)
        return Predictor(method, self.size, self.shot, self.device, self.amp, sharpens=self.sharpens)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", cache_mb: float = 0) -> "Predictor":
        """A predictor of a trained network by its name in the zoo, such as hmnet-lite, or by its place.

        A place is a checkpoint, a folder that `tools.share` wrote, or a repository of Hugging Face's hub.
        """
        return cls.from_checkpoint(*open_shared(source), device, cache_mb)

    def set_support(
        self,
        images: ImageSource | Iterable[ImageSource] | Mapping[str, Any],
        masks: MaskSource | Iterable[MaskSource] | None = None,
    ) -> None:
        """Show what to look for: images and the mask of each, or several classes as {name: (images, masks)}.

        An image is a file, a PIL image, an array or a tensor of any size; a mask is a binary image of that size, a
        tuple (index image, class), or boxes. Any number of images will do for a class, also one by itself. UserError
        for what cannot be read, sizes that differ, and masks without an object; the former support then stays.
        """
        classes = dict(images) if isinstance(images, Mapping) else {SINGLE: (images, [] if masks is None else masks)}
        for name, pair in classes.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise UserError(f"support of {name!r}: should be (images, masks)")
        if not classes or len(classes) > 254:
            raise UserError(f"{len(classes)} classes of support; should be 1 to 254")
        lists = {name: as_lists(*pair) for name, pair in classes.items()}
        inputs = {name: self._inputs(name, *pair) for name, pair in lists.items()}
        self.states = {name: self._encode(self._with_others(name, inputs)) for name in inputs}

    def predict(self, image: ImageSource) -> Prediction:
        """Look for the support's classes in one image of any size; UserError if it cannot be read."""
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Iterable[ImageSource]) -> list[Prediction]:
        """The same for several images, of any sizes, in one pass through the network."""
        read = [read_image(image) for image in as_lists(images, None)[0]]
        scores = self.scores([self.network_input(image) for image in read]) if read else []
        return [
            self.prediction(tuple(self.states), each, image.shape[:2], image)
            for each, image in zip(scores, read, strict=True)
        ]

    def stream(self, images: ImageSource | Iterable[ImageSource], batch: int | None = None) -> Iterator[Prediction]:
        """The same for any number of images, in their order, while the next ones are read in threads.

        UserError in its turn for an image that cannot be read.
        """
        sources: Any = [images] if is_single(images) else images

        def read(source: ImageSource) -> tuple[RGB, tuple[int, ...], None]:
            image = read_image(source)
            return image, image.shape[:2], None

        for result in segment(self, sources, read, lambda _, prediction, seconds: prediction, batch):
            if isinstance(result, UserError):
                raise result
            yield result

    def predict_tiled(self, image: ImageSource, tiling: Tiling) -> Prediction:
        """The same for one image that is larger than the network's size, in tiles."""
        pixels = read_image(image)
        check_tiling(self, tiling)
        return predict_tiles(self, window_of(pixels), pixels.shape[:2], tiling)

    @torch.inference_mode()
    def scores(self, inputs: Sequence[Tensor]) -> list[list[Scores]]:
        """Of every input, as `network_input` makes it, the scores of each class, B = 1."""
        features = self._query_features(inputs)
        with self.autocast():
            scores = [self.model.score(features, expand(state, len(inputs))) for state in self.states.values()]
        return [[each.item(number) for each in scores] for number in range(len(inputs))]

    @torch.inference_mode()
    def embed_queries(self, images: Sequence[ImageSource]) -> Features:
        """Images as the trunk takes them; UserError without a support and for an image that cannot be read."""
        return self._query_features([self.network_input(read_image(image)) for image in images])

    def _query_features(self, inputs: Sequence[Tensor]) -> Features:
        if not self.states:
            raise UserError("no support is set; call set_support first")
        with self.autocast():
            return self._embed(torch.stack(list(inputs)), "query")

    @torch.inference_mode()
    def prediction(
        self, names: tuple[str, ...], scores: Sequence[Scores], size: tuple[int, ...], image: RGB | None = None
    ) -> Prediction:
        """Scores of one image for every class, B = 1, to what is found in it at that size.

        Where outlines are sharpened they are drawn to the edges of `image`, which may have been reduced.

        For one class the probability is the softmax of the network's two scores; several compete in one softmax with
        the background at margin 0. As in testing, scores are first resized to what the network saw.
        """
        margins = self.margins(scores, size)
        if self.sharpens and image is not None:
            margins = torch.from_numpy(sharpen(margins.float().cpu().numpy(), image))
        return self.from_margins(names, margins)

    def margins(self, scores: Sequence[Scores], size: tuple[int, ...]) -> Tensor:
        """Of one image's scores the margins over the background at a size (h, w): (classes, h, w)."""
        height, width = size
        shown = (height, width) if self.model.images.fit == "square" else (max(size), max(size))
        return torch.cat([each.margin_at(self.size, shown) for each in scores])[:, :height, :width]

    @torch.inference_mode()
    def from_margins(self, names: tuple[str, ...], margins: Tensor) -> Prediction:
        """What margins (classes, h, w) come to: a softmax with the background at margin 0."""
        mask = merge_classes(margins).to(torch.uint8)
        probabilities = torch.cat([torch.zeros_like(margins[:1]), margins]).softmax(0)[1:]
        return Prediction(names, mask.cpu().numpy(), probabilities.cpu().numpy())

    def _inputs(self, name: str, images: Sequence[ImageSource], masks: Sequence[MaskSource]) -> tuple[Tensor, Tensor]:
        """Supports of a class as the method takes them, (K, 3, size, size), and their masks (K, size, size)."""
        if not len(images) or len(images) != len(masks):
            raise UserError(f"support of {name!r}: {len(images)} images and {len(masks)} masks; give a mask for each")
        shots, shot_masks = [], []
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1):
            pixels = read_image(image)
            where = str(image) if isinstance(image, str | Path) else f"image {number}"
            where += "" if name == SINGLE else f" of {name!r}"
            shots.append(self.network_input(pixels))
            shot_masks.append(torch.from_numpy(self._network_mask(mask, pixels.shape[:2], where)))
        return torch.stack(shots), torch.stack(shot_masks)

    def _with_others(self, name: str, inputs: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A class's supports, with those of the others as background where the method learns from them."""
        if not self.model.learns_from_others:
            return inputs[name]
        others = [pair for key, pair in inputs.items() if key != name]
        negatives = [(images, torch.where(masks == 1, 0, IGNORE)) for images, masks in others]
        images, masks = zip(inputs[name], *negatives, strict=True)
        return torch.cat(images), torch.cat([mask.to(torch.uint8) for mask in masks])

    @torch.inference_mode()
    def _encode(self, support: tuple[Tensor, Tensor]) -> State:
        images, masks = support
        key = _digest(images, masks)
        state = self.known.pop(key, None)
        if state is None:
            with self.autocast():
                state = self.model.support_state(self._embed(images, "support"), masks[None].to(self.device))
        self.known[key] = state  # now the latest
        while len(self.known) > MAX_CACHED_SUPPORTS:
            self.known.pop(next(iter(self.known)))
        return state

    def _embed(self, images: Tensor, role: Role) -> Features:
        """Images (B, 3, size, size) as the method takes them in one role, each from memory if it came before."""
        if not self.cache.budget:
            return self.model.embed(self.model.features(images.to(self.device), role), role)
        return self.cache.embedded([_digest(image) for image in images], images.to(self.device), role)

    def network_input(self, image: RGB, shape: tuple[int, ...] | None = None) -> Tensor:
        """An image (h, w, 3) as in testing, (3, size, size); a much larger one is averaged first, not to alias.

        `shape` is (h, w) before the image was reduced, if it was.
        """
        height, width = (min(side, AVERAGING_FACTOR * self.size) for side in image.shape[:2])
        shape = shape or image.shape
        if (height, width) != image.shape[:2]:
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        return normalise(fit_image(image.astype(np.float32), self.size, self.model.images, shape))

    def _network_mask(self, source: MaskSource, size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
        mask = object_mask(source, size, where)
        small = fit_mask(mask, self.size, self.model.images)
        if not (small == 1).any():
            raise UserError(f"{where}: the object in its mask is too small for a network that sees {self.size} pixels")
        return small

    def autocast(self) -> AbstractContextManager[None]:
        """The precision that the network computes in."""
        return autocast(self.amp, self.device)


def _digest(*tensors: Tensor) -> str:
    """Of the contents of tensors on the CPU."""
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
