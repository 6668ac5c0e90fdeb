"""The selective scan of state-space models as one operator with several backends."""

from model.scan.mamba_api import selective_scan_fn
from model.scan.operator import Recap, selective_scan

__all__ = ["Recap", "selective_scan", "selective_scan_fn"]
