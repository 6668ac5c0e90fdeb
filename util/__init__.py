"""Ground for every other room. It is imported before PyTorch, whose OpenMP reads the environment once."""

import os

# Threads without work would spin for some more, and take the processor from whatever else computes on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
