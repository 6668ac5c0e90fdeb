"""Any image model of timm (Wightman, PyTorch Image Models) as a frozen encoder."""

import difflib
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from timm.layers import Format
from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import Tensor, nn
from torchvision.ops import Permute

from model.backbone.base import Backbone, MapInfo
from model.backbone.packages import packaged_weights
from util.checkpoint import read_checkpoint
from util.errors import UserError, first_line
from util.image import MEAN, STD

# What makes a model's maps finer or its input size free; a model takes one of these or nothing.
OPTIONS: tuple[dict[str, Any], ...] = ({"output_stride": 8}, {"strict_img_size": False}, {"dynamic_img_size": True}, {})

STAGE = re.compile(r"blocks\.(\d+)")


def with_inner_stages(net: nn.Module, maps: Sequence[MapInfo]) -> tuple[MapInfo, ...]:
    """A model's maps with those of the stages `blocks.N` between them, which timm does not list (EfficientNets).

    timm lists the last stage of a stride, so the ones before it have its stride. Blocks without convolutions, those of
    transformers, are left out.
    """
    modules = dict(net.named_modules())
    found = [maps[0]]
    for before, info in pairwise(maps):
        first, last = (STAGE.fullmatch(each.name) for each in (before, info))
        for number in range(int(first[1]) + 1, int(last[1])) if first and last else ():
            stage = modules.get(f"blocks.{number}", nn.Identity())
            if convs := [module for module in stage.modules() if isinstance(module, nn.Conv2d)]:
                found.append(MapInfo(f"blocks.{number}", convs[-1].out_channels, info.stride))
        found.append(info)
    return tuple(found)


class TimmBackbone(Backbone):
    """A model of timm with all maps of its `feature_info`, under the names there, and of the stages between them.

    Weights are random until they are loaded.

    Args: its name; which of the maps are its `levels`, None for the last three stages, or of a plain vision transformer
    the blocks at a half, three quarters and the end (what lies behind the last level is not built); its weight file, if
    there; whether its weights stay as they are, None: those of plain vision transformers do; the largest stride, 8
    where a model can be dilated, or 32, its own strides. Raises UserError for a name or maps that timm lacks.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[int] | None,
        file: Path,
        frozen: bool | None = None,
        output_stride: Literal[8, 32] = 8,
    ) -> None:
        super().__init__()
        self.name, self.file, self.output_stride = name, file, output_stride
        options, stages = _look_up(name, output_stride)
        strides = [stage["reduction"] for stage in stages]
        plain, count = len(set(strides)) == 1, len(stages)  # a plain vision transformer has one size of map
        if layers is None:
            layers = (count // 2 - 1, count * 3 // 4 - 1, count - 1) if plain else range(max(count - 3, 0), count)
        if not all(0 <= layer < count for layer in layers) or sorted(layers) != list(layers):
            raise UserError(f"backbone_layers: {list(layers)} should be of 0 ... {count - 1}, ascending")
        self.options = {**options, "features_only": True, "out_indices": tuple(range(layers[-1] + 1))}
        if plain:  # whose blocks' outputs are meant to be normalised
            self.options["feature_cls"] = partial(FeatureGetterNet, norm=True)
        self.net = cast(Any, timm.create_model(name, **self.options))
        shown = zip(stages, self.net.feature_info.channels(), strides, strict=False)
        self.maps = tuple(MapInfo(stage["module"], channels, stride) for stage, channels, stride in shown)
        self.levels = tuple(self.maps[layer].name for layer in layers)
        self.listed = tuple(info.name for info in self.maps)
        self.maps = with_inner_stages(self.net, self.maps)
        self.channels_last = Format(getattr(self.net, "output_fmt", "NCHW")) is Format.NHWC
        stem = next(module for module in self.net.modules() if isinstance(module, nn.Conv2d))
        if "output_stride" not in options or stem.kernel_size[0] <= stem.stride[0]:  # images are cut into patches
            self.size_multiple, self.size_offset = max(strides[: layers[-1] + 1]), 0
        source = self.net.pretrained_cfg
        self.fixed_size = None if options or not source.get("fixed_input_size") else source["input_size"][-1]
        self.frozen = plain if frozen is None else frozen
        self.requires_grad_(not self.frozen)
        mean, std = (torch.tensor(source[key]).view(3, 1, 1) for key in ("mean", "std"))
        own, imagenet = (mean, std), [torch.from_numpy(x / 255).view(3, 1, 1) for x in (MEAN, STD)]
        self.register_buffer("scale", imagenet[1] / own[1], persistent=False)
        self.register_buffer("shift", (imagenet[0] - own[0]) / own[1], persistent=False)
        self.loaded = False

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """As in Backbone."""
        found = dict[str, Tensor]()
        hooks = [
            self.net.get_submodule(name).register_forward_hook(lambda _, __, x, name=name: found.__setitem__(name, x))
            for name in names
            if name not in self.listed
        ]
        try:
            maps = self.net(images * self.scale + self.shift)  # normalised as the model's own training images
        finally:
            for hook in hooks:
                hook.remove()
        found |= zip(self.listed, maps, strict=True)
        return {name: found[name].permute(0, 3, 1, 2) if self.channels_last else found[name] for name in names}

    def valid_size(self, size: int) -> int:
        """As in Backbone; some models take images of one size only."""
        return self.fixed_size or super().valid_size(size)

    def last_stage(self) -> nn.Module | None:
        """As in Backbone, where timm runs the model's stages in a row."""
        if isinstance(self.net, FeatureListNet):
            row = dict(self.net.named_children())
        else:
            row = {f"blocks_{number}": block for number, block in enumerate(getattr(self.net, "blocks", ()))}
        names, ends = list(row), [name.replace(".", "_") for name in self.levels[-2:]]
        if len(ends) < 2 or not row.keys() >= set(ends):
            return None
        stage = nn.Sequential(*(row[name] for name in names[names.index(ends[0]) + 1 : names.index(ends[1]) + 1]))
        return nn.Sequential(Permute([0, 2, 3, 1]), stage, Permute([0, 3, 1, 2])) if self.channels_last else stage

    def skip_last_norm(self) -> None:
        """As in Backbone, of plain vision transformers."""
        if isinstance(self.net, FeatureGetterNet):
            self.net.norm = False

    def load_pretrained(self) -> None:
        """Load timm's weights, once: from the file if it is there, from an installed package, or by timm's download.

        Raises UserError when a file does not fit, and saying which file to put where when the download fails.
        """
        if self.loaded:
            return
        path = self.file
        logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of classifiers, which no encoder needs
        local = self._read(path) if path.is_file() else packaged_weights(self.name, self._whole().state_dict())
        overlay = {"state_dict": local} if local else None
        try:
            if overlay is None:
                _look_for_download(self.net.pretrained_cfg)
            net = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **self.options)
        except Exception as error:  # of any library that is involved, down to sockets
            if overlay:
                raise UserError(f"{path}: does not fit timm/{self.name}: {first_line(error)[:120]}") from error
            raise UserError(
                f"{path}: is not there, and timm could not download it ({first_line(error)[:120]}); "
                f"put timm's model.safetensors of {self.name} there under this name"
            ) from error
        self.net.load_state_dict(net.state_dict())
        self.loaded = True

    def load_excluded_weights(self) -> None:
        """As in Backbone."""
        if self.frozen:
            self.load_pretrained()

    def digest(self, exact: bool = False) -> Tensor:
        """SHA-256 of all weights in half precision, uint8 (32): files of half and of full precision are one encoder.

        `exact`: of the weights as they are, which checkpoints of version 0.1 hold.
        """
        digest = hashlib.sha256()
        for key, value in sorted(self.net.state_dict().items()):
            value = value.detach().cpu() if exact else value.detach().cpu().half()
            digest.update(key.encode() + value.float().contiguous().numpy().tobytes())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def _whole(self) -> nn.Module:
        """The model with all that its weight files hold but the classifier, nothing computed."""
        with torch.device("meta"):
            return timm.create_model(self.name, num_classes=0, **_look_up(self.name, self.output_stride)[0])

    def _read(self, path: Path) -> Mapping[str, Any]:
        """The tensors of a weight file; UserError for one that lacks any of the model's."""
        content = read_checkpoint(path)
        state = content.get("state_dict", content)
        missing = sorted(key for key in self._whole().state_dict() if key not in state and "num_batches" not in key)
        if missing:
            raise UserError(
                f"{path}: is no weight file of timm/{self.name}: lacks {missing[0]} and {len(missing) - 1} others"
            )
        return state


def _look_for_download(source: Mapping[str, Any]) -> None:
    """OSError at once without a network, where the download itself tries for a minute; nothing where it is cached."""
    repository, file = source.get("hf_hub_id"), "model.safetensors"
    if repository and not isinstance(try_to_load_from_cache(repository, file), str):
        with suppress(EntryNotFoundError):  # has another file
            get_hf_file_metadata(hf_hub_url(repository, file))


@cache
def _look_up(name: str, output_stride: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The options that a model takes and what timm says of its maps, nothing computed; UserError if there is none."""
    if not timm.is_model(name):
        known = timm.list_models(include_tags=True) + timm.list_models()
        nearest = min((full for full in known if name and name in full), key=len, default="")
        nearest = nearest or difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UserError(f"backbone: timm has no model {name!r}; nearest is 'timm/{nearest}'")
    for options in OPTIONS[output_stride != 8 :]:
        try:
            with torch.device("meta"):
                net = cast(Any, timm.create_model(name, features_only=True, **options))
            return options, net.feature_info.info
        except (TypeError, AssertionError, NotImplementedError) as error:  # an option that it does not know
            reason: Exception = error
        except (RuntimeError, AttributeError) as error:
            reason = error
            break
    raise UserError(f"backbone: timm/{name} gives no feature maps ({first_line(reason)[:120]})") from reason
