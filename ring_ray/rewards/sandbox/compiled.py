"""Compiled programs by their source: the same source, at once or later, compiles once."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from ring_ray.rewards.sandbox.execution import Ending, Execution


class CompileCache:
    """Keeps at most ``size`` bytes, and drops what was not asked for the longest."""

    def __init__(self, size: int) -> None:
        self._size, self._held = size, 0
        self._tasks = OrderedDict[str, asyncio.Task[Execution]]()

    async def get(self, key: str, compile_: Callable[[], Coroutine[Any, Any, Execution]]) -> Execution:
        """What is kept under ``key``, or what ``compile_`` gives. A failure of ours says nothing: it is not kept."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(compile_())
            task.add_done_callback(lambda done: self._keep(key, done))
        self._tasks.move_to_end(key)
        return await asyncio.shield(task)  # others may wait for it as well

    async def clear(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._held = 0

    def _keep(self, key: str, task: asyncio.Task[Execution]) -> None:
        if task.cancelled() or task.exception() or task.result().ending is Ending.FAILED:
            self._tasks.pop(key, None)
            return
        self._held += _size(task)
        for oldest, kept in list(self._tasks.items()):
            if self._held <= self._size:
                break
            if kept.done():
                self._held -= _size(kept)
                del self._tasks[oldest]


def _size(task: asyncio.Task[Execution]) -> int:
    compiled = task.result()
    return len(compiled.result) + len(compiled.stdout) + len(compiled.stderr)
