"""Ground for every other room. It is imported before PyTorch, whose OpenMP reads the environment once."""

import os

# Threads without work spin for some more, here for a moment only: longer, they would take the processor from whatever
# else computes on the machine; not at all, and every small operation would wait for them to wake.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
