"""The methods by name: the values of `arch` and `--arch`."""

import difflib

from model.methods.adapt import Adapt
from model.methods.bam import BAM
from model.methods.concat import Concat
from model.methods.dcama import DCAMA
from model.methods.density import Density
from model.methods.fssdino import FSSDINO
from model.methods.hdmnet import HDMNet
from model.methods.hmnet import HMNet
from model.methods.hmnet_lite import HMNetLite
from model.methods.hsnet import HSNet
from model.methods.insid3 import INSID3
from model.methods.method import Method
from model.methods.pfenet import PFENet
from model.methods.prior import Prior
from model.methods.prototype import Prototype
from model.methods.sccan import SCCAN
from util.errors import UserError

METHODS: dict[str, type[Method]] = {
    "HMNet": HMNet,
    "HMNetLite": HMNetLite,
    "HMNetAMP": HMNet,  # the released name for training with `amp: auto`
    "BAM": BAM,
    "PFENet": PFENet,
    "SCCAN": SCCAN,
    "HDMNet": HDMNet,
    "HSNet": HSNet,
    "DCAMA": DCAMA,
    "concat": Concat,
    "prior": Prior,
    "prototype": Prototype,
    "adapt": Adapt,
    "INSID3": INSID3,
    "FSSDINO": FSSDINO,
    "density": Density,
}


def find_method(name: str) -> type[Method]:
    """The method of a name; UserError names the nearest where there is none."""
    if name not in METHODS:
        lowered = {known.lower(): known for known in METHODS}
        nearest = lowered[difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.0)[0]]
        raise UserError(f"arch: {name!r} is no method; nearest is {nearest!r}, known are {', '.join(METHODS)}")
    return METHODS[name]
