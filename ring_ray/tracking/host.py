"""What is in use on the node that the controller runs on, whoever uses it."""

from contextlib import suppress
from typing import Any

import psutil
import pynvml

GIB = 2**30


class HostMeter:
    """Reads the ``sys/`` numbers."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call measures nothing, it starts the interval of the next
        self._gpus = gpus()

    def read(self) -> dict[str, float]:
        """CPU use is over the time since the last call."""
        host = {
            "sys/cpu_percent": psutil.cpu_percent(),
            "sys/memory_used_gib": psutil.virtual_memory().used / GIB,
        }
        for index, gpu in enumerate(self._gpus):
            with suppress(pynvml.NVMLError):  # not every GPU, nor every part of one, tells
                host[f"sys/gpu{index}_memory_used_gib"] = pynvml.nvmlDeviceGetMemoryInfo(gpu).used / GIB
        return host


def gpus() -> list[Any]:
    """NVML's handles of this node's GPUs; none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
