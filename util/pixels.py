"""What the values of a mask mean, for rooms that never open an image."""

from typing import Literal

IGNORE = 255  # pixels that count neither as object nor as background
MaskKind = Literal["index", "binary", "alpha"]
