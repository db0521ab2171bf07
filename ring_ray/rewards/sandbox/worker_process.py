"""A worker of the sandbox, seen from outside: one process of bubblewrap, which runs one task at a time."""

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.cgroup import MemoryGroup
from ring_ray.rewards.sandbox.execution import Execution, Task, conclude
from ring_ray.rewards.sandbox.inside.protocol import PACKET_BYTES, STREAMS, Answer, Request
from ring_ray.rewards.sandbox.isolation import (
    SandboxUnavailableError,
    bare_command,
    environment,
    isolated_command,
)

_START_SECONDS = 120.0
_ANSWER_SECONDS = 60.0  # on top of a task's limit, for a busy machine: that a worker has ended is known at once
_FIRST_USER, _WORKERS_PER_PROCESS = 1_000_000, 64


class WorkerLostError(RuntimeError):
    """The worker has ended or does not answer."""


class WorkerProcess:
    """Number ``number`` of this process's. Its users are nobody else's, so that limits by user are limits by worker."""

    def __init__(self, config: SandboxConfig, number: int, *, isolated: bool) -> None:
        self._config, self._isolated = config, isolated
        self._first_user = _FIRST_USER + 2 * (os.getpid() * _WORKERS_PER_PROCESS + number)
        name = f"ring_ray-{os.getpid()}-{number}"
        self._group = MemoryGroup(config.cgroup, name) if config.cgroup is not None else None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._said: int | None = None  # a file of what bubblewrap and the worker print: why they ended
        self._runs = 0

    async def start(self) -> None:
        """Raises `SandboxUnavailableError`, with what bubblewrap says."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        number = other.fileno()
        command = isolated_command(number, self._first_user) if self._isolated else bare_command(number)
        if self._group is not None:
            command = self._group.joining(command)
        self._said = os.memfd_create("said")
        with other:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[number],
                env=environment(),
            )
        self._channel, self._runs = own, 0
        try:
            await self._receive(_START_SECONDS)
        except WorkerLostError as error:
            self.stop()
            raise SandboxUnavailableError(f"a worker of the sandbox does not start: {error}") from error
        except BaseException:  # cancellation
            self.stop()
            raise

    def stop(self) -> None:
        """With all that it runs: bubblewrap's processes die with their parent."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._said is not None:
            os.close(self._said)
        if self._group is not None:
            self._group.remove()
        self._process = self._channel = self._said = None

    async def run(self, task: Task) -> Execution:
        """Raises `WorkerLostError`; the worker is then stopped, as after a cancellation, and begins anew by itself."""
        if self._channel is None or self._runs >= self._config.runs_per_worker:
            self.stop()
            await self.start()
        self._runs += 1
        try:
            return await self._ask(task)
        except BaseException:  # cancellation as well: the program may still run, so no other may follow it
            self.stop()
            raise

    async def _ask(self, task: Task) -> Execution:
        request = Request(
            id=secrets.token_hex(16),
            kind=task.kind,
            limits=task.limits,
            command=task.command,
            entry=task.entry,
            files=list(task.files),
        )
        kills = self._group.kills() if self._group is not None else 0
        if self._group is not None:
            self._group.limit(task.limits.memory_bytes)
        with memory_files([task.stdin, b"", b"", b"", *task.files.values()]) as descriptors:
            assert self._channel is not None  # run has started it
            try:
                socket.send_fds(self._channel, [request.packet()], descriptors)
            except OSError as error:
                raise WorkerLostError(f"a worker of the sandbox takes no task: {error}") from error
            packet = await self._receive(task.limits.wall_seconds + _ANSWER_SECONDS)
            try:
                answer = Answer.parse(packet)
            except (ValueError, TypeError) as error:
                raise WorkerLostError(f"a worker of the sandbox answered what is no answer: {error}") from error
            if not secrets.compare_digest(answer.id, request.id):
                raise WorkerLostError("a worker of the sandbox answered what it was not asked")
            written = {
                name: os.pread(descriptor, task.limits.output_bytes, 0)
                for name, descriptor in zip(STREAMS[1:], descriptors[1:], strict=False)
            }
        return conclude(answer, task.limits, written, self._group is not None and self._group.kills() > kills)

    async def _receive(self, seconds: float) -> bytes:
        assert self._channel is not None
        try:
            async with asyncio.timeout(seconds):
                packet = await asyncio.get_running_loop().sock_recv(self._channel, PACKET_BYTES)
        except TimeoutError:
            raise WorkerLostError(f"a worker of the sandbox has not answered for {seconds:g} s") from None
        except OSError as error:
            raise WorkerLostError(f"a worker of the sandbox is gone: {error}") from error
        if not packet:
            raise WorkerLostError(f"a worker of the sandbox has ended. {self._last_words()}".rstrip())
        return packet

    def _last_words(self) -> str:
        assert self._process is not None  # start has begun it
        assert self._said is not None
        with suppress(subprocess.TimeoutExpired):  # its channel is closed: it is about to end
            self._process.wait(timeout=1)
        size = os.fstat(self._said).st_size
        return os.pread(self._said, 2000, max(size - 2000, 0)).decode(errors="replace").strip()


@contextmanager
def memory_files(contents: list[bytes]) -> Iterator[list[int]]:
    """Files without a name, for as long as the block lasts; each is read and written from its beginning."""
    with ExitStack() as stack:
        descriptors = []
        for content in contents:
            descriptor = os.memfd_create("sandbox")
            stack.callback(os.close, descriptor)
            if content:
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                os.lseek(descriptor, 0, os.SEEK_SET)
            descriptors.append(descriptor)
        yield descriptors
