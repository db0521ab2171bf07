"""What becomes of a forked worker: one program, with files and namespaces of its own, limits and no privileges."""

import fcntl
import math
import os
import resource
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from ring_ray.rewards.sandbox.inside import kernel, programs
from ring_ray.rewards.sandbox.inside.protocol import STREAMS, Request

RESULT = 3  # descriptor of what a function returns, of what a compiler made, or of the verdict of unit tests
_FAILURE, _PEER = 4, 5
_STACK_BYTES = 64 << 20  # for deep recursion; the kernel's own default is 8 MiB
_OUT_OF_THE_WAY, _ALL_DESCRIPTORS = 100, 65_536


class Box:
    """``user`` is the program's; None where a user namespace has only one.

    ``directory`` is /tmp; another one only where there is no isolation.
    """

    def __init__(self, request: Request, user: int | None, directory: str, isolated: bool) -> None:
        self._request, self._user, self._directory, self._isolated = request, user, directory, isolated

    def run(self, failure: int, descriptors: list[int], peer: socket.socket | None, *, tests: bool) -> NoReturn:
        """To be called in a fork, a process of a new PID namespace. Whatever fails until the program begins is told to
        ``failure``: it is not the program's fault. With ``tests`` it is what tests the program at ``peer``.
        """
        told = failure
        try:
            os.setsid()
            muted = self._request.kind == "unit_tests" and not tests
            files = self._take(failure, descriptors, peer, muted=muted)
            told = _FAILURE
            if self._isolated:
                self._mount(sum(os.fstat(file).st_size for file in files))
                kernel.drop_privileges(self._user)
            kernel.forbid_new_privileges()
            os.chdir(self._directory)
            source = self._write(files, tests=tests)
            self._limit()
            os.closerange(_PEER if peer is None else _PEER + 1, _ALL_DESCRIPTORS)
            kernel.install_filter()
            if self._request.kind == "command":
                self._execute(self._request.command)
        except (OSError, ValueError, MemoryError) as error:
            with suppress(BrokenPipeError):  # the worker was killed
                os.write(told, f"{type(error).__name__}: {error}".encode()[:4000])
            os._exit(1)
        os.close(_FAILURE)
        programs.run(self._request, RESULT, None if peer is None else socket.socket(fileno=_PEER), source)

    def _execute(self, command: list[str]) -> NoReturn:
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by this interpreter, so by what it starts
            signal.signal(ignored, signal.SIG_DFL)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            if os.path.basename(command[0]) not in self._request.files:
                raise
            os.write(2, f"{error}\n".encode())  # what the submission was compiled to is no program: its own fault
            os._exit(126)  # as of a shell

    def _mount(self, given_bytes: int) -> None:
        """/tmp has room for ``given_bytes`` of files beside the program's own."""
        kernel.unshare(kernel.NEW_NAMESPACE_MOUNTS)
        kernel.mount("", "/", "", kernel.RECURSIVE | kernel.PRIVATE)
        flags = kernel.NO_SETUID | kernel.NO_DEVICES
        size = f"mode=1777,size={self._request.limits.disk_bytes + given_bytes},nr_inodes=10000"
        kernel.mount("tmpfs", "/tmp", "tmpfs", flags, size)
        kernel.mount("/tmp", "/dev/shm", "", kernel.BIND)
        kernel.mount("proc", "/proc", "proc", flags | kernel.READ_ONLY)

    def _take(self, failure: int, descriptors: list[int], peer: socket.socket | None, *, muted: bool) -> list[int]:
        """Put every descriptor in its place; returns those of the files. A muted program gets no stream."""
        wanted = [*descriptors[: len(STREAMS)], failure]
        if muted:
            wanted[: len(STREAMS)] = [os.open(os.devnull, os.O_RDWR)] * len(STREAMS)
        if peer is not None:
            wanted.append(peer.detach())
        away = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for descriptor in wanted]
        files = [
            fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
            for descriptor in descriptors[len(STREAMS) :]
        ]
        for place, descriptor in enumerate(away):
            os.dup2(descriptor, place, inheritable=place <= RESULT)
        return files

    def _write(self, descriptors: list[int], *, tests: bool) -> bytes | None:
        """The program's files; or the source of the tests, which is never in a file nor in the submission's memory."""
        for name, descriptor in zip(self._request.files, descriptors, strict=True):
            if tests != (name == programs.TESTS):
                continue
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            if tests:
                return content
            with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "wb") as file:
                file.write(content)
        return None

    def _limit(self) -> None:
        limits = self._request.limits
        seconds = math.ceil(limits.cpu_seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL
        values = {
            resource.RLIMIT_FSIZE: limits.output_bytes,
            resource.RLIMIT_NPROC: limits.processes,
            resource.RLIMIT_NOFILE: limits.files,
            resource.RLIMIT_STACK: min(_STACK_BYTES, limits.memory_bytes),
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_NICE: 0,
            resource.RLIMIT_RTPRIO: 0,
        }
        if limits.address_bytes is not None:
            values[resource.RLIMIT_AS] = limits.address_bytes
        for kind, value in values.items():
            most = resource.getrlimit(kind)[1]
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))
