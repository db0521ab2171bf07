"""The sandbox: workers, each with one task at a time, and the programs that were compiled."""

import asyncio
import hashlib
import logging
from types import TracebackType
from typing import Self

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.compiled import CompileCache
from ring_ray.rewards.sandbox.execution import Ending, Execution, Task, compile_limits, program_limits
from ring_ray.rewards.sandbox.isolation import SandboxUnavailableError
from ring_ray.rewards.sandbox.languages import TOOLCHAINS, missing, source_files
from ring_ray.rewards.sandbox.worker_process import WorkerLostError, WorkerProcess

logger = logging.getLogger(__name__)

_TRIES = 2
_REFUSED = (
    "{}. Code that a model wrote runs isolated or not at all; to run it all the same, with all that this user may do, "
    "set reward.sandbox.unsafe_without_isolation=true"
)
_UNSAFE = "reward.sandbox.unsafe_without_isolation=true: code that a model wrote runs here WITHOUT ISOLATION, since %s"


class Sandbox:
    """``async with Sandbox(config) as sandbox``; calls may overlap, and wait while every worker has a task.

    Entering raises `SandboxUnavailableError` where isolation can't be had and the config does not do without.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._workers = list[WorkerProcess]()
        self._idle = asyncio.Queue[WorkerProcess]()
        self._compiled = CompileCache(config.cache_mib << 20)

    async def __aenter__(self) -> Self:
        try:
            await self._start(isolated=True)
        except SandboxUnavailableError as error:
            if not self._config.unsafe_without_isolation:
                raise SandboxUnavailableError(_REFUSED.format(error)) from error
            logger.warning(_UNSAFE, error)
            await self._start(isolated=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._compiled.clear()
        self._stop()

    async def run(self, task: Task) -> Execution:
        """A worker that is lost begins anew and runs the task once more; then its ending is FAILED."""
        worker, reason = await self._idle.get(), ""
        try:
            for _ in range(_TRIES):
                try:
                    return await worker.run(task)
                except (WorkerLostError, SandboxUnavailableError) as error:
                    reason = str(error)
        finally:
            self._idle.put_nowait(worker)
        return Execution(ending=Ending.FAILED, reason=reason)

    async def compile(self, language: str, source: str, harness: str = "") -> Execution:
        """What came of compiling; ``result`` is the program. FAILED where there is no compiler."""
        if reason := missing(language):
            return Execution(ending=Ending.FAILED, reason=reason)
        files = source_files(language, source, harness)
        command = ["/bin/sh", "-c", TOOLCHAINS[language].compile]
        task = Task(kind="command", limits=compile_limits(self._config), files=files, command=command)
        key = hashlib.sha256(repr((language, sorted(files.items()))).encode()).hexdigest()
        return await self._compiled.get(key, lambda: self.run(task))

    async def _start(self, *, isolated: bool) -> None:
        self._workers = [
            WorkerProcess(self._config, number, isolated=isolated) for number in range(self._config.workers)
        ]
        try:
            for outcome in await asyncio.gather(*map(self._try, self._workers), return_exceptions=True):
                if outcome is not None:
                    raise outcome
        except BaseException:
            self._stop()
            raise
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def _try(self, worker: WorkerProcess) -> None:
        """A worker may start where its programs can't: a container may refuse them their user or their mounts."""
        empty = Task(kind="python", limits=program_limits(self._config), files=source_files("python", ""))
        await worker.start()
        try:
            done = await worker.run(empty)
        except WorkerLostError as error:
            raise SandboxUnavailableError(str(error)) from error
        if done.ending is not Ending.DONE:
            raise SandboxUnavailableError(f"an empty program does not run in the sandbox: {done.reason}")

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers, self._idle = [], asyncio.Queue()
