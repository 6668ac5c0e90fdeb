"""Where tests run: a test that takes the fixture `device` runs on the CPU and, by `make gpu`, on the accelerator."""

import pytest

GPU = pytest.param("gpu", marks=pytest.mark.gpu)
on_gpu = pytest.mark.parametrize("device", [GPU], indirect=True)  # on the accelerator alone
