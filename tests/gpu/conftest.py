"""Tests that need a GPU. They run in one process, on the first one."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(scope="package", autouse=True)
def nvidia_gpu() -> Iterator[None]:
    """Skip the whole folder where there is none; afterwards leave the process group that the first engine joined."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
