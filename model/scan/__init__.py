"""The selective scan of state-space models as one operator with several backends.

This folder needs PyTorch and nothing else, and can be copied into another project as it is.
"""

from .inputs import BackendError
from .mamba_api import selective_scan_fn
from .operator import Recap, selective_scan

__all__ = ["BackendError", "Recap", "selective_scan", "selective_scan_fn"]
