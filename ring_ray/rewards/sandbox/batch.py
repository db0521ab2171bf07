"""Many submissions, from lines of JSON: read as they are judged, so that a file of any size will do."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import Problem, ProblemError, read_problem
from ring_ray.types import Reward


async def judge_lines(lines: Iterable[str], config: SandboxConfig) -> AsyncIterator[tuple[int, Reward]]:
    """The number of each line, from 1, with its verdict, in the order in which they are ready.

    Raises `ProblemError`, which names the line, and `SandboxUnavailableError`.
    """
    running = dict[asyncio.Task[Reward], int]()
    async with Sandbox(config) as sandbox:
        judge = Judge(sandbox, config)
        try:
            for number, line in enumerate(lines, 1):
                running[asyncio.create_task(judge.judge(*read_submission(line, number)))] = number
                while len(running) >= 2 * config.workers:
                    for done in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                        yield running.pop(done), done.result()
            while running:
                for done in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                    yield running.pop(done), done.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def read_submission(line: str, number: int) -> tuple[Problem, str]:
    """Raises `ProblemError`, which names the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProblemError(f"line {number}: each line must be one JSON object: {error}") from error
    if not isinstance(row, dict):
        raise ProblemError(f"line {number}: must be an object with the fields problem and source")
    for field in ("problem", "source"):
        if field not in row:
            raise ProblemError(f"line {number}: no field {field!r}: there must be problem and source")
    if not isinstance(row["source"], str):
        raise ProblemError(f"line {number}: source must be text")
    try:
        return read_problem(json.dumps(row["problem"])), row["source"]
    except ProblemError as error:
        raise ProblemError(f"line {number}: {error}") from error
