"""The row "concat" of the paper's Table 3: HMNet's surroundings without any block between embedding and decoder."""

from model.methods.hmnet import HMNet
from model.parts.trunk import Trunk
from util.config import Config


class Concat(HMNet):
    """Query, prototype and priors are concatenated and decoded; the same network as HMNet with `fusion: concat`."""

    @staticmethod
    def make_trunk(cfg: Config) -> Trunk:
        """No blocks."""
        return Trunk([], cfg.width)
