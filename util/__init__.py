"""Ground for every other room. It is imported before PyTorch, whose OpenMP reads the environment once."""

import os

from util.processors import bound_processors, processor_count

# Threads without work spin for some more, here for a moment only: longer, they would take the processor from whatever
# else computes on the machine; not at all, and every small operation would wait for them to wake.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# OpenMP knows which processors it is bound to, but not a container's share of their time; more threads than that would
# be stopped together for most of every tenth of a second.
if (count := processor_count()) < bound_processors():
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
