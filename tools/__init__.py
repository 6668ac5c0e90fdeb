"""Commands beside training and testing: `python -m tools.NAME`."""

import util  # noqa: F401  (before PyTorch)
