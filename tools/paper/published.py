"""The paper's published numbers."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

PAPER = Path(__file__).with_name("paper.yaml")
SOURCE = "Hybrid Mamba for Few-Shot Segmentation, NeurIPS 2024, arXiv 2409.19613"


@cache
def published(table: str) -> Any:
    """One table or figure of paper.yaml, which says what its numbers are; KeyError for an unknown one."""
    return yaml.safe_load(PAPER.read_text(encoding="utf-8"))[table]
