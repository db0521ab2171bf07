"""A submission against a problem's tests: 1 where all pass, else 0. Decided here, outside the sandbox."""

import asyncio
import reprlib
import time
from collections.abc import Iterable
from dataclasses import replace

from ring_ray.config import SandboxConfig
from ring_ray.rewards.base import correct, failed, wrong
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.sandbox.compare import same_output, same_value
from ring_ray.rewards.sandbox.execution import Ending, Execution, Task, program_limits, program_task
from ring_ray.rewards.sandbox.inside import values
from ring_ray.rewards.sandbox.inside.protocol import Limits
from ring_ray.rewards.sandbox.inside.unit_tests import PASSED, UNSUPPORTED_EXIT
from ring_ray.rewards.sandbox.languages import PROGRAM, TOOLCHAINS, source_files, test_files
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import CallTest, Checker, Problem, StreamTest
from ring_ray.types import Reward, Verdict

_LONGEST_RESULT = 4 << 20  # bytes of JSON, which this process reads
_MOST_READ = 20_000  # bytes of errors
_CHECKER_FILES = ("input", "output", "expected")


class Judge:
    """Judges submissions in ``sandbox``, as many at a time as it has workers: none waits within its own time."""

    def __init__(self, sandbox: Sandbox, config: SandboxConfig) -> None:
        self._sandbox, self._config = sandbox, config
        self._room = asyncio.Semaphore(config.workers)

    async def judge(self, problem: Problem, source: str) -> Reward:
        """CORRECT (1) or WRONG (0), also at a program's limits; FAILED where we are at fault, TIMED_OUT where it takes
        longer than reward.sandbox.verdict_seconds altogether."""
        async with self._room:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(self._config.verdict_seconds):
                    reward = await self._judge(problem, source)
            except TimeoutError:
                limit = f"reward.sandbox.verdict_seconds={self._config.verdict_seconds:g}"
                reward = Reward(score=0.0, verdict=Verdict.TIMED_OUT, reason=f"all tests take longer than {limit}")
        return replace(reward, seconds=time.perf_counter() - start)

    async def judge_all(self, submissions: Iterable[tuple[Problem, str]]) -> list[Reward]:
        """In the order of the submissions."""
        return list(await asyncio.gather(*(self.judge(problem, source) for problem, source in submissions)))

    async def _judge(self, problem: Problem, source: str) -> Reward:
        if problem.unit_tests:
            return await self._unit_tests(problem, source)
        files = await self._files(problem.language, source, problem.harness)
        if isinstance(files, Reward):
            return files
        tests: list[StreamTest | CallTest] = [*problem.tests, *problem.calls]
        for number, test in enumerate(tests, 1):
            if isinstance(test, CallTest):
                verdict = await self._call(problem, files, test)
            else:
                verdict = await self._run(problem, files, test)
            if verdict.verdict is not Verdict.CORRECT:
                return replace(verdict, reason=f"test {number} of {len(tests)}: {verdict.reason}")
        return correct(f"passes all {len(tests)} tests" if len(tests) > 1 else "passes the test")

    async def _files(self, language: str, source: str, harness: str = "") -> dict[str, bytes] | Reward:
        """What is run: the source, or what a compiler makes of it; or why that can't be had."""
        if language not in TOOLCHAINS:
            return source_files(language, source, harness)
        compiled = await self._sandbox.compile(language, source, harness)
        if compiled.ending is Ending.DONE:
            return {PROGRAM: compiled.result}
        if compiled.ending is Ending.CRASHED:
            return wrong(f"does not compile: {_first_error(compiled.stderr)}")
        return _not_done(compiled)

    def _limits(self, problem: Problem) -> Limits:
        return program_limits(self._config, problem.language, problem.cpu_seconds, problem.memory_mib)

    async def _run(self, problem: Problem, files: dict[str, bytes], test: StreamTest) -> Reward:
        limits, stdin = self._limits(problem), test.input.encode("utf-8", "surrogatepass")
        run = await self._sandbox.run(program_task(problem.language, files, limits, stdin=stdin))
        if run.ending is not Ending.DONE:
            return _not_done(run)
        if problem.checker is not None:
            return await self._checked(problem.checker, test, run.stdout)
        given = run.stdout.decode("utf-8", "replace")
        tolerance = 1e-6 if problem.tolerance is None else problem.tolerance
        if same_output(given, test.output, problem.comparison, tolerance):
            return correct("right")
        return wrong(f"prints {shorten(given)} instead of {shorten(test.output)}")

    async def _checked(self, checker: Checker, test: StreamTest, output: bytes) -> Reward:
        """The checker comes with the data, but what it reads does not: it runs in the sandbox as well."""
        program = await self._files(checker.language, checker.source)
        if isinstance(program, Reward):
            return failed(f"the checker: {program.reason}")
        contents = (test.input.encode("utf-8", "surrogatepass"), output, test.output.encode("utf-8", "surrogatepass"))
        files = program | dict(zip(_CHECKER_FILES, contents, strict=True))
        limits = program_limits(self._config, checker.language)
        run = await self._sandbox.run(program_task(checker.language, files, limits, arguments=_CHECKER_FILES))
        if run.ending is Ending.DONE:
            return correct("right")
        if run.ending is Ending.CRASHED and run.exit_code in (1, 2):  # testlib's "wrong answer" and "wrong format"
            return wrong(_last_line(run.stderr) or "refused by the checker")
        return failed(f"the checker: {run.reason}")

    async def _call(self, problem: Problem, files: dict[str, bytes], test: CallTest) -> Reward:
        task = Task(
            kind="function",
            limits=self._limits(problem),
            files=files,
            stdin=values.dumps((tuple(test.arguments), test.keywords)).encode(),
            entry=problem.entry,
        )
        run = await self._sandbox.run(task)
        if run.ending is not Ending.DONE:
            return _not_done(run)
        if len(run.result) > _LONGEST_RESULT:
            return wrong(f"{problem.entry} returns more than {_LONGEST_RESULT >> 20} MiB")
        try:
            returned = values.as_json(run.result)
            same = same_value(returned, test.returns, problem.tolerance)
        except (values.NotPlainError, RecursionError) as error:
            return wrong(f"{problem.entry} returns {error}")
        if same:
            return correct("right")
        return wrong(f"{problem.entry} returns {_brief(returned)}, not {_brief(test.returns)}")

    async def _unit_tests(self, problem: Problem, source: str) -> Reward:
        files = test_files(source, problem.unit_tests)
        run = await self._sandbox.run(Task(kind="unit_tests", limits=self._limits(problem), files=files))
        if run.exit_code == UNSUPPORTED_EXIT:
            return failed(_last_line(run.stderr))
        if run.ending is Ending.CRASHED:
            return wrong(_last_line(run.stderr) or run.reason)
        if run.ending is not Ending.DONE:
            return _not_done(run)
        return correct("passes the unit tests") if run.result == PASSED else wrong("the unit tests did not end")


def _brief(value: object) -> str:
    return reprlib.repr(value)[:100]


def _first_error(text: bytes) -> str:
    """Of a compiler: g++ begins with where it is."""
    lines = text[:_MOST_READ].decode("utf-8", "replace").strip().splitlines()
    return shorten(next((line for line in lines if "error" in line), lines[0]), 200) if lines else ""


def _last_line(text: bytes) -> str:
    lines = text[-_MOST_READ:].decode("utf-8", "replace").strip().splitlines()
    return shorten(lines[-1], 200) if lines else ""


def _exception(text: bytes) -> str:
    """The last line that stands out: what is set in belongs to it, such as Java's stack."""
    lines = text[-_MOST_READ:].decode("utf-8", "replace").splitlines()
    return next((shorten(line, 200) for line in reversed(lines) if line.strip() and not line[0].isspace()), "")


def _not_done(run: Execution) -> Reward:
    if run.ending is Ending.FAILED:
        return failed(run.reason)
    said = _exception(run.stderr) if run.ending is Ending.CRASHED else ""
    return wrong(f"{run.reason}: {said}" if said else run.reason)
