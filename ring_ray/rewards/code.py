"""Programs: the response's last block of code against the problem's tests, in the sandbox (docs/sandbox.md)."""

import asyncio
import math
import re
from collections.abc import Sequence

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import AnswerError, GroupVerifier, Response, failed, unparsable
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.languages import missing
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import Problem, ProblemError, read_problem
from ring_ray.types import Prompt, Reward

# The fences stand equally far in. Where another one opens within, the first was never closed.
_BLOCK = re.compile(r"^([ \t]*)```[^\n`]*\n((?:(?!\1```).*\n)*+)\1```(?![\w`])", re.MULTILINE)


def last_code_block(response: str) -> str | None:
    """What stands in the last closed block between lines of ```, as far out as they; None where there is none."""
    blocks = _BLOCK.findall(response)
    if not blocks:
        return None
    indent, code = blocks[-1]
    return re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def _problem(prompt: Prompt) -> Problem:
    try:
        return read_problem(prompt.answer)
    except ProblemError as error:
        raise AnswerError(f"{prompt.id}: {error}") from error


class CodeVerifier(GroupVerifier):
    """Scores 1 where the last block of code passes all tests of ``prompt.answer``, the JSON of a `Problem`; else 0.

    Responses to one prompt are judged at the same time, as many as the sandbox has workers. It must run in one thread:
    the sandbox ends with the thread that started it.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config.sandbox
        self._runner: asyncio.Runner | None = None
        self._sandbox = Sandbox(self._config)

    def start(self) -> None:
        """Raises `SandboxUnavailableError` where isolation can't be had."""
        if self._runner is None:
            runner = asyncio.Runner()
            try:
                runner.run(self._sandbox.__aenter__())
            except BaseException:
                runner.close()
                raise
            self._runner = runner

    def check(self, prompt: Prompt) -> None:
        """Starts the sandbox, too: nothing else shows that isolation can be had."""
        self.start()
        problem = _problem(prompt)
        languages = {problem.language} | ({problem.checker.language} if problem.checker else set())
        for reason in filter(None, map(missing, sorted(languages))):
            raise AnswerError(f"{prompt.id}: {reason}")

    def close(self) -> None:
        if self._runner is not None:
            self._runner.run(self._sandbox.__aexit__(None, None, None))
            self._runner.close()
            self._runner = None

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        """Raises `AnswerError` where the answer is no problem of programming, and what `start` raises."""
        problem = _problem(prompt)
        self.start()
        assert self._runner is not None  # start has made it
        return self._runner.run(self._judge(problem, responses))

    def seconds(self, responses: int) -> float:
        return math.ceil(responses / self._config.workers) * self._config.verdict_seconds

    async def _judge(self, problem: Problem, responses: Sequence[Response]) -> list[Reward]:
        judge = Judge(self._sandbox, self._config)

        async def judged(response: Response) -> Reward:
            source = last_code_block(response.text)
            if source is None:
                return unparsable("no closed block of code in the response")
            try:
                return await judge.judge(problem, source)
            except Exception as error:  # noqa: BLE001 - the others must not be left running, in the next group's places
                return failed(f"{type(error).__name__}: {shorten(str(error), limit=300)}")

        return list(await asyncio.gather(*map(judged, responses)))
