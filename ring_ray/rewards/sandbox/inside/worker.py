"""A worker: an interpreter inside bubblewrap that forks for each request (pre-fork: nobody waits for a start).

    worker ─┬─ idle process: the first of a new PID namespace; with it the kernel ends whatever is left there
            ├─ program: a fork, in that namespace
            └─ tests: another one, for unit tests

    python -I -S -B -c "..." CHANNEL FIRST_USER ISOLATED

It reads requests from a socket that no program inherits, never reads what is judged, and watches time and memory.
"""

import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Literal

from ring_ray.rewards.sandbox.inside import kernel, programs
from ring_ray.rewards.sandbox.inside.box import Box
from ring_ray.rewards.sandbox.inside.protocol import PACKET_BYTES, Answer, Request

_LOOK_SECONDS = 0.01  # between two looks at the memory
_MAX_DESCRIPTORS = 32


class Worker:
    """``users`` are the user ids of a program and of what tests it; None where a user namespace has only one.

    Without isolation, memory is limited by process only, and what leaves the program's session stays.
    """

    def __init__(self, channel: socket.socket, users: tuple[int, int] | None, isolated: bool) -> None:
        self._channel, self._users, self._isolated = channel, users, isolated
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)

    def serve(self) -> None:
        """Until the judge closes the channel."""
        self._channel.send(b"ready")
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._channel, PACKET_BYTES, _MAX_DESCRIPTORS)
            if not packet:
                return
            answer = self._run(Request.parse(packet), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            self._channel.send(answer.packet())

    def _run(self, request: Request, descriptors: list[int]) -> Answer:
        started = time.monotonic()
        directory = "/tmp" if self._isolated else _new_directory()
        failure, end = os.pipe()
        idle = self._new_namespace() if self._isolated else None
        try:
            program, *others = self._start(request, directory, end, descriptors)
        finally:
            os.close(end)
            if self._isolated:
                kernel.enter_pid_namespace(self._pid_namespace)
        stopped, peak = self._watch(program, request, started, idle)
        if idle is not None:
            os.kill(idle, signal.SIGKILL)
        else:
            for process in (program, *others):
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
        _, status, usage = os.wait4(program, 0)
        for process in others if idle is None else (*others, idle):  # the first process ends after all others
            os.waitpid(process, 0)
        if not self._isolated:
            _remove(directory)
        return Answer(
            id=request.id,
            status=None if stopped else status,
            stopped=stopped,
            failed=_read(failure),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            wall_seconds=time.monotonic() - started,
            peak_bytes=peak,
        )

    def _new_namespace(self) -> int:
        """The children that are started until this one enters its own again are in it. Returns its first process."""
        kernel.unshare(kernel.NEW_NAMESPACE_PIDS)
        return kernel.start_idle_process()

    def _start(self, request: Request, directory: str, failure: int, descriptors: list[int]) -> list[int]:
        """First the one whose end is the end of all."""

        def fork(number: int, peer: socket.socket | None, *, tests: bool) -> int:
            process = os.fork()
            if process == 0:
                try:
                    self._channel.close()
                    user = self._users[number] if self._users else None
                    Box(request, user, directory, self._isolated).run(failure, descriptors, peer, tests=tests)
                finally:
                    os._exit(1)  # whatever happens, it is no worker
            return process

        if request.kind != "unit_tests":
            return [fork(0, None, tests=False)]
        judge, solution = socket.socketpair()
        with judge, solution:  # each side sees when the other one ends
            submission = fork(0, solution, tests=False)
            return [fork(1, judge, tests=True), submission]

    def _watch(
        self, program: int, request: Request, started: float, idle: int | None
    ) -> tuple[Literal["", "time", "memory"], int]:
        """Why all is to be killed, empty where the program has ended by itself; and the most memory that was seen."""
        limits, ended, peak = request.limits, select.poll(), 0
        descriptor = os.pidfd_open(program)
        ended.register(descriptor, select.POLLIN)
        stopped: Literal["", "time", "memory"] = ""
        while not stopped and not ended.poll(_LOOK_SECONDS * 1000):
            peak = max(peak, self._memory_bytes(idle))
            if peak > limits.memory_bytes:
                stopped = "memory"
            elif time.monotonic() - started > limits.wall_seconds:
                stopped = "time"
        os.close(descriptor)
        return stopped, peak

    def _memory_bytes(self, idle: int | None) -> int:
        """Of all processes in sight but bubblewrap's, this one, and the idle one, which shares this one's memory."""
        if idle is None:
            return 0
        others = {"1", str(os.getpid()), str(idle)}
        return sum(memory_bytes(name) for name in os.listdir("/proc") if name.isdigit() and name not in others)


# Every module that a worker has loaded makes each fork dearer: these only where there is no isolation.
def _new_directory() -> str:
    import tempfile

    return tempfile.mkdtemp(prefix="ring_ray-sandbox-")


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _read(pipe: int) -> str:
    with open(pipe, "rb") as file:
        os.set_blocking(pipe, False)  # without isolation, what is left over may hold the other end
        return (file.read() or b"").decode(errors="replace")


def memory_bytes(process: str) -> int:
    """Memory that is not a file's, and the tables of its pages, which can be larger by far: reading what was never
    written takes nothing else. Pages shared by fork count in each process, so the sum is never too small.
    """
    with suppress(OSError):  # it has just ended
        with open(f"/proc/{process}/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        names = ("RssAnon", "RssShmem", "VmSwap", "VmPTE", "HugetlbPages")
        return 1024 * sum(int(fields[name].split()[0]) for name in names if name in fields)
    return 0


def main() -> None:
    channel, first_user, isolated = (int(argument) for argument in sys.argv[1:4])
    os.set_inheritable(channel, False)
    # Where this machine has no memory left, its own processes are not the first to go.
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    # The first process of a namespace is protected from signals that it does not handle; Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    kernel.forbid_inspection()
    if isolated:
        kernel.drop_bounding_set()
    programs.import_common()
    gc.collect()
    gc.disable()  # for this process, which would only touch pages that it shares with its forks
    gc.freeze()  # for the forks: their collections leave these objects alone
    users = (first_user, first_user + 1) if first_user else None
    Worker(socket.socket(fileno=channel), users, bool(isolated)).serve()
