"""The processes behind the actors: where one runs, what it is doing when it should have answered, and its end.

A process that hangs can't be asked: another one on its node signals it. Its threads' stacks then come by
`faulthandler`, which needs neither the interpreter's lock nor the thread that hangs, through a file in memory.
"""

import asyncio
import faulthandler
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STACKS = "ring_ray-stacks"  # the name of the file
STACK_SECONDS = 5  # for a process to write them: one that is stopped never will
AUTOPSY_SECONDS = 60  # with the start of a process for it


class Whereabouts(NamedTuple):
    node_id: str
    pid: int


def offer_stacks() -> None:
    """Have this process write its stacks when it gets SIGUSR1."""
    file = os.fdopen(os.memfd_create(STACKS), "w")  # faulthandler has the descriptor only: keep the file open
    _offered.append(file)
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


_offered: list[object] = []


async def autopsy(place: Whereabouts) -> str:
    """End a process that does not answer, and its children; returns what they were doing, a process a paragraph."""
    strategy = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    try:
        async with asyncio.timeout(AUTOPSY_SECONDS):
            return await _examine_and_kill.options(scheduling_strategy=strategy).remote(place.pid)
    except (TimeoutError, ray.exceptions.RayError) as error:
        return f"process {place.pid} can't be found ({type(error).__name__}): its node may be gone"


def headline(autopsy: str) -> str:
    """What the first process was doing, in a few words: "is stopped", "is in all_reduce (distributed_c10d.py:2806)"."""
    first = autopsy.split("\nprocess ")[0]
    frame = re.search(r"^Current thread .*\n  File \"(?:.*/)?(.*)\", line (\d+) in (.*)", first, re.MULTILINE)
    if frame is None:
        return first.split("\n")[0].partition(") ")[2] or first
    return f"is in {frame[3]} ({frame[1]}:{frame[2]})"


@ray.remote(num_cpus=0)
def _examine_and_kill(pid: int) -> str:
    """See `autopsy`; on the process's own node."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return f"process {pid} is gone"
    told = "\n\n".join(map(_examine, family))
    for member in family:
        with suppress(psutil.Error):  # it ended with its parent
            member.kill()
    psutil.wait_procs(family, timeout=STACK_SECONDS)
    return told


def _examine(process: psutil.Process) -> str:
    try:
        told = f"process {process.pid} ({process.name()}) is {process.status()}"
        if process.status() == psutil.STATUS_STOPPED:
            return told
        file = _stacks_file(process.pid)
        return told + (f"\n{_stacks(process.pid, file)}" if file else "")
    except (OSError, psutil.Error) as error:  # it ends meanwhile, or is another user's
        return f"process {process.pid} can't be looked at: {error}"


def _stacks_file(pid: int) -> Path | None:
    """None where the process has not called `offer_stacks`: the signal would end it."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if STACKS in os.readlink(descriptor):
            return descriptor
    return None


def _stacks(pid: int, file: Path) -> str:
    before = file.stat().st_size
    os.kill(pid, signal.SIGUSR1)
    deadline, size = time.monotonic() + STACK_SECONDS, -1
    # Until there is something, and no more comes.
    while time.monotonic() < deadline and (size <= before or size != file.stat().st_size):
        size = file.stat().st_size
        time.sleep(0.1)
    return file.read_text()[before:]
