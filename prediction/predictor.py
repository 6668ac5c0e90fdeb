"""Segment images of one's own: the supports once, then any number of queries.

predictor = Predictor.from_checkpoint("config.yaml", "best_1shot.pth")
predictor.set_support(["cat1.jpg", "cat2.jpg"], ["cat1.png", "cat2.png"])
prediction = predictor.predict("holiday.jpg")
prediction.mask, prediction.probability, prediction.score
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dataset.transform import fit_image, fit_mask
from engine.optim import autocast
from model.build import build_model, load_frozen_parts
from model.inference import FeatureCache, merge_classes, prepare_inference
from model.methods.method import Features, Method, Role, Scores, State
from model.released import load_weights
from model.tensors import expand
from prediction.shared import add_backbone, open_shared
from prediction.support import SINGLE
from util.config import Config, load_config
from util.distributed import pick_device
from util.errors import UserError
from util.image import ImageSource, normalise, read_image
from util.mask import interpret_mask
from util.pixels import IGNORE

Box: TypeAlias = Sequence[float]  # left, top, right, bottom in pixels, the last two exclusive
# A binary mask; an index mask and the class in it that is meant; or boxes: one, a list, or an array (n, 4).
MaskSource: TypeAlias = ImageSource | tuple[ImageSource, int] | Box | Sequence[Box]

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
        inside = self.mask > 0
        return float(self.probability[inside].mean()) if inside.any() else 0.0

    def at(self, threshold: float) -> "Prediction":
        """The same with another threshold than 0.5 for the likeliest class against the background alone."""
        if threshold == 0.5:
            return self
        best, background = self.class_probabilities.max(0), 1 - self.probability
        mask = np.where(best > threshold * (best + background), self.class_probabilities.argmax(0) + 1, 0)
        return replace(self, mask=mask.astype(np.uint8))

    def found(self) -> list[Found]:
        """The classes with at least one pixel, in the order of `names`."""
        result = []
        for value, name in enumerate(self.names, 1):
            region = self.mask == value
            if area := int(region.sum()):
                left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
                score = float(self.class_probabilities[value - 1][region].mean())
                result.append(Found(name, value, area, score, (left, top, left + width, top + height)))
        return result


class Predictor:
    """Segments in images what support images show.

    Args: a network, which is folded in place; the side of the square that it sees; the number of shots that it was
    trained with; device; config key `amp`; megabytes for the features of images, to know them when they come again.
    """

    def __init__(
        self, model: Method, size: int, shot: int, device: torch.device, amp: str = "off", cache_mb: float = 0
    ) -> None:
        self.model, self.size, self.shot, self.device = prepare_inference(model.to(device)), size, shot, device
        self.amp = amp
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
        return cls(model, cfg.val_size, cfg.trained_shot or cfg.shot, pick_device(device), cfg.amp, cache_mb)

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
        return cls(model, cfg.val_size, cfg.shot, pick_device(device), cfg.amp, cache_mb)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto") -> "Predictor":
        """A predictor of a shared network: a folder that `tools.share` wrote, or a repository of Hugging Face's hub."""
        return cls.from_checkpoint(*open_shared(source), device)

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
        self.states = {name: self._encode(name, *as_lists(*pair)) for name, pair in classes.items()}

    def predict(self, image: ImageSource) -> Prediction:
        """Look for the support's classes in one image of any size; UserError if it cannot be read."""
        return self.predict_batch([image])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Iterable[ImageSource]) -> list[Prediction]:
        """The same for several images, of any sizes, in one pass through the network."""
        pictures = [read_image(image) for image in as_lists(images, None)[0]]
        if not pictures:
            return []
        features = self.embed_queries(pictures)
        with self.autocast():
            scores = [self.model.score(features, expand(state, len(pictures))) for state in self.states.values()]
        return [
            self.prediction(tuple(self.states), [each.item(number) for each in scores], picture.shape[:2])
            for number, picture in enumerate(pictures)
        ]

    @torch.inference_mode()
    def embed_queries(self, images: Sequence[ImageSource]) -> Features:
        """Images as the trunk takes them; UserError without a support and for an image that cannot be read."""
        if not self.states:
            raise UserError("no support is set; call set_support first")
        queries = torch.stack([self._network_input(read_image(image)) for image in images])
        with self.autocast():
            return self._embed(queries, "query")

    def prediction(self, names: tuple[str, ...], scores: Sequence[Scores], size: tuple[int, ...]) -> Prediction:
        """Scores of one image for every class, B = 1, to what is found in it at that size.

        For one class the probability is the softmax of the network's two scores; several compete in one softmax with
        the background at margin 0. As in testing, scores are first resized to what the network saw.
        """
        height, width = size
        shown = (height, width) if self.model.images.fit == "square" else (max(size), max(size))
        margins = torch.cat([each.margin_at(self.size, shown) for each in scores])[:, :height, :width]
        mask = merge_classes(margins).to(torch.uint8)
        probabilities = torch.cat([torch.zeros_like(margins[:1]), margins]).softmax(0)[1:]
        return Prediction(names, mask.cpu().numpy(), probabilities.cpu().numpy())

    @torch.inference_mode()
    def _encode(self, name: str, images: Sequence[ImageSource], masks: Sequence[MaskSource]) -> State:
        if not len(images) or len(images) != len(masks):
            raise UserError(f"support of {name!r}: {len(images)} images and {len(masks)} masks; give a mask for each")
        shots, shot_masks = [], []
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1):
            picture = read_image(image)
            where = str(image) if isinstance(image, str | Path) else f"image {number}"
            where += "" if name == SINGLE else f" of {name!r}"
            shots.append(self._network_input(picture))
            shot_masks.append(torch.from_numpy(self._network_mask(mask, picture.shape[:2], where)))
        pictures, marks = torch.stack(shots), torch.stack(shot_masks)  # (K, 3, size, size), (K, size, size)
        key = _digest(pictures, marks)
        state = self.known.pop(key, None)
        if state is None:
            with self.autocast():
                state = self.model.support_state(self._embed(pictures, "support"), marks[None].to(self.device))
        self.known[key] = state  # now the latest
        while len(self.known) > MAX_CACHED_SUPPORTS:
            self.known.pop(next(iter(self.known)))
        return state

    def _embed(self, images: Tensor, role: Role) -> Features:
        """Images (B, 3, size, size) as the method takes them in one role, each from memory if it came before."""
        if not self.cache.budget:
            return self.model.embed(self.model.features(images.to(self.device), role), role)
        return self.cache.embedded([_digest(image) for image in images], images.to(self.device), role)

    def _network_input(self, picture: NDArray[np.uint8]) -> Tensor:
        """An image (h, w, 3) as in testing, (3, size, size); a much larger one is averaged first, not to alias."""
        shape = picture.shape
        height, width = (min(side, AVERAGING_FACTOR * self.size) for side in shape[:2])
        if (height, width) != picture.shape[:2]:
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        return normalise(fit_image(picture.astype(np.float32), self.size, self.model.images, shape))

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


def object_mask(source: Any, size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """The object (h, w) that a mask or boxes mark in an image of size (h, w): 1, 255 not to be judged, else 0.

    `where` names the image in the UserError that a misfit raises.
    """
    if source is None:
        raise UserError(f"{where}: has no mask; give one, or boxes")
    if (boxes := as_boxes(source, size)) is not None:
        return mask_from_boxes(boxes, size, where)
    wanted: int | None = None
    if isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[1], int | np.integer):
            raise UserError(f"{where}: a tuple for a mask is (index mask, class) or a box of four numbers")
        source, wanted = source[0], int(source[1])
    index, _, note, _ = interpret_mask(source)
    if note:
        warnings.warn(f"{where}: in its mask {note}", stacklevel=2)
    if index.shape != size:
        (height, width), (h, w) = size, index.shape
        raise UserError(f"{where}: is {width}x{height} as shown, but its mask is {w}x{h}; make them equal")
    classes = [value for value in np.unique(index).tolist() if value not in (0, IGNORE)]
    if wanted is None and len(classes) > 1:
        raise UserError(f"{where}: its mask has the classes {classes}; say which one is meant by (mask, class)")
    wanted = classes[0] if wanted is None and classes else wanted
    if wanted not in classes:
        raise UserError(f"{where}: its mask marks no object" + (f" of class {wanted}" if wanted else ""))
    return np.where(index == IGNORE, index, index == wanted).astype(np.uint8)


def as_lists(images: Any, masks: Any) -> tuple[list[ImageSource], list[MaskSource]]:
    """Images and masks as lists; a single image and its mask as lists of one."""
    if not isinstance(images, str | Path | Image.Image) and not hasattr(images, "read"):
        if getattr(images, "ndim", 4) > 3 and isinstance(images, Iterable):
            return list(images), list(masks) if isinstance(masks, Iterable) else [masks]
        if not isinstance(images, np.ndarray | Tensor):
            raise UserError(f"{type(images).__name__} instead of images; give files, PIL images, arrays or tensors")
    in_list = isinstance(masks, list) and len(masks) == 1 and not isinstance(masks[0], list | tuple)
    return [images], masks if in_list else [masks]


def as_boxes(source: Any, size: tuple[int, ...]) -> list[Any] | None:
    """The boxes that a mask is given by in an image of size (h, w); None where it is an image."""
    if isinstance(source, np.ndarray | Tensor):
        is_mask = tuple(source.shape) == tuple(size) or source.ndim not in (1, 2) or source.shape[-1] != 4
        return None if is_mask else source.reshape(-1, 4).tolist()
    if not isinstance(source, list | tuple):
        return None
    if len(source) == 4 and all(isinstance(side, int | float | np.number) for side in source):
        return [source]
    are_boxes = isinstance(source, list) or all(np.ndim(box) == 1 for box in source)
    return list(source) if are_boxes else None


def mask_from_boxes(boxes: Sequence[Any], size: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """The mask (h, w) of boxes; UserError for one that is empty or outside of the image."""
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        try:
            left, top, right, bottom = (round(float(side)) for side in box)
        except (TypeError, ValueError, OverflowError):
            left, top, right, bottom = (0, 0, 0, 0)
        if not (0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]):
            box = " ".join(str(box).split())[:80]
            raise UserError(f"{where}: {box} is no box (left, top, right, bottom) within {size[1]}x{size[0]}")
        mask[top:bottom, left:right] = 1
    if not len(boxes):
        raise UserError(f"{where}: has no box")
    return mask
