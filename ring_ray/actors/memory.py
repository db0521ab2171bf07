"""How much memory a role holds, for the phases of a run that takes turns."""

import psutil
import torch

from ring_ray.config import Device


def held_bytes(device: Device) -> int:
    """On a GPU what all processes hold there; on a CPU the resident memory of this process and its children."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
    process = psutil.Process()
    return sum(_resident_bytes(one) for one in (process, *process.children(recursive=True)))


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:  # it has just ended
        return 0
