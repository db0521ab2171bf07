"""Programs in three languages through the real sandbox. bubblewrap, g++ and a JDK must be there: nothing is skipped."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ring_ray.config import RewardConfig, SandboxConfig
from ring_ray.rewards.base import AnswerError
from ring_ray.rewards.code import CodeVerifier
from ring_ray.rewards.sandbox.execution import Ending, Task, program_limits
from ring_ray.rewards.sandbox.isolation import SandboxUnavailableError
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.languages import TOOLCHAINS
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import CallTest, Checker, Problem, StreamTest, read_problem
from ring_ray.types import Reward, Verdict
from tests.conftest import Run
from tests.unit.test_rewards import prompt, responses

CONFIG = SandboxConfig(workers=2, wall_seconds=60)
JOBS = Path(__file__).parents[2] / "jobs"
TESTS = [StreamTest(input=f"{a} {b}", output=f"{a + b}\n") for a, b in ((1, 2), (-5, 5), (10**9, 1))]
SUMS = {
    "python": "a, b = map(int, input().split())\nprint(a + b)",
    "cpp": "#include <iostream>\nint main() { long long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }",
    "java": """
        import java.util.Scanner;
        public class Main { public static void main(String[] words) {
            Scanner scanner = new Scanner(System.in);
            System.out.println(scanner.nextLong() + scanner.nextLong()); } }
    """,
}
LANGUAGES = pytest.mark.parametrize("language", sorted(SUMS))


@pytest.fixture(scope="module")
def sandbox(run: Run) -> Iterator[Sandbox]:
    sandbox = Sandbox(CONFIG)
    run(sandbox.__aenter__())
    yield sandbox
    run(sandbox.__aexit__(None, None, None))


@pytest.fixture
def judge(sandbox: Sandbox) -> Judge:
    return Judge(sandbox, CONFIG)


@LANGUAGES
def test_right_and_wrong(language: str, judge: Judge, run: Run) -> None:
    problem = Problem(language=language, tests=TESTS)  # type: ignore[arg-type]
    right, wrong = run(judge.judge_all([(problem, SUMS[language]), (problem, SUMS[language].replace("+", "-"))]))
    assert (right.score, right.verdict) == (1.0, Verdict.CORRECT), right.reason
    assert (wrong.score, wrong.verdict) == (0.0, Verdict.WRONG)
    assert wrong.reason.startswith("test 1 of 3: prints ")


@LANGUAGES
def test_what_does_not_compile_is_wrong(language: str, judge: Judge, run: Run) -> None:
    reward = run(judge.judge(Problem(language=language, tests=TESTS), "this is } no program"))  # type: ignore[arg-type]
    assert (reward.score, reward.verdict) == (0.0, Verdict.WRONG)


def test_without_a_compiler_nothing_is_wrong(judge: Judge, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOOLCHAINS, "java", replace(TOOLCHAINS["java"], compiler="javac-99"))
    reward = run(judge.judge(Problem(language="java", tests=TESTS), SUMS["java"]))
    assert reward.verdict is Verdict.FAILED
    assert "apt install default-jdk-headless" in reward.reason


def test_a_verdict_has_a_time_limit_of_its_own(sandbox: Sandbox, run: Run) -> None:
    hurried = Judge(sandbox, replace(CONFIG, verdict_seconds=0.3))
    slow = Problem(tests=[StreamTest(output="")] * 100)
    late = run(hurried.judge(slow, "import time\ntime.sleep(60)"))
    assert late.verdict is Verdict.TIMED_OUT
    assert "reward.sandbox.verdict_seconds=0.3" in late.reason
    assert late.seconds > 0
    assert run(Judge(sandbox, CONFIG).judge(Problem(tests=TESTS), SUMS["python"])).verdict is Verdict.CORRECT


def test_one_source_compiles_once(sandbox: Sandbox, run: Run) -> None:
    async def twice() -> tuple[object, object]:
        source = SUMS["cpp"] + "// of this test"
        return await asyncio.gather(sandbox.compile("cpp", source), sandbox.compile("cpp", source))

    one, other = run(twice())
    assert one is other


HARNESSES = {
    "python": ("def add(a, b): return a + b", "print(add(*map(int, input().split())))"),
    "cpp": (
        "long long add(long long a, long long b) { return a + b; }",
        '#include <iostream>\n#include "solution.hpp"\n'
        "int main() { long long a, b; std::cin >> a >> b; std::cout << add(a, b); }",
    ),
    "java": (
        "class Solution { long add(long a, long b) { return a + b; } }",
        "public class Main { public static void main(String[] words) { var in = new java.util.Scanner(System.in);"
        "System.out.println(new Solution().add(in.nextLong(), in.nextLong())); } }",
    ),
}


@LANGUAGES
def test_a_harness_calls_the_submission(language: str, judge: Judge, run: Run) -> None:
    source, harness = HARNESSES[language]
    problem = Problem(language=language, tests=TESTS, harness=harness)  # type: ignore[arg-type]
    right, wrong = run(judge.judge_all([(problem, source), (problem, source.replace("a + b", "a * b"))]))
    assert (right.score, wrong.score) == (1.0, 0.0), (right.reason, wrong.reason)


@pytest.mark.parametrize(
    ("source", "returns", "right"),
    [
        ("def f(x): return x * 2", 6, True),
        ("def f(x): return (x, [x])", [3, [3]], True),
        ("def f(x): return {x: str(x)}", {"3": "3"}, True),
        ("def f(x): return x * 2.0", 6, True),
        ("def f(x): print(6)", 6, False),
        ("def f(x): return '6'", 6, False),
        ("def f(x): return object()", 6, False),
        ("def f(x): raise ValueError", 6, False),
        ("def g(x): return 6", 6, False),
    ],
)
def test_calls(source: str, returns: object, right: bool, judge: Judge, run: Run) -> None:
    problem = Problem(calls=[CallTest(arguments=[3], returns=returns)], entry="f")
    reward = run(judge.judge(problem, source))
    assert reward.verdict is (Verdict.CORRECT if right else Verdict.WRONG), reward.reason


STACK = """
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
def numbers(n):
    for number in range(n): yield number
"""


@pytest.mark.parametrize(
    "tests",
    [
        "stack = Stack([1])\nstack.push(2)\nassert stack.pop() == 2\nassert len(stack) == 1",
        "assert Stack([1]) == Stack([1])\nassert Stack([1]).items == [1]",
        "assert list(numbers(3)) == [0, 1, 2]",
        "def test_pop():\n    assert Stack([3]).pop() == 3",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
        "        with self.assertRaises(IndexError):\n            Stack().pop()",
    ],
)
def test_unit_tests(tests: str, judge: Judge, run: Run) -> None:
    broken = STACK.replace("self.items.pop()", "None").replace("== other.items", "is 0")
    broken = broken.replace("yield number", "yield 7")
    problem = Problem(unit_tests=tests)
    right, wrong = run(judge.judge_all([(problem, STACK), (problem, broken)]))
    assert right.verdict is Verdict.CORRECT, right.reason
    assert wrong.verdict is Verdict.WRONG


ODD = """
import math, numbers as number_kinds
from collections import Counter
from fractions import Fraction
def apply(function, *values): return [function(value) for value in values]
def half(number): return Fraction(number, 2)
def letters(text): return Counter(text)
def queue(items): return items[::-1]
class Block:
    entered = 0
    def __enter__(self): Block.entered += 1; return self
    def __exit__(self, *why): return True
"""


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        ("assert apply(lambda x: x + 1, 1, 2) == [2, 3]", Verdict.CORRECT),
        ("assert apply(len, [], 'ab') == [0, 2]", Verdict.CORRECT),
        ("assert apply(str.upper, 'ab') == ['AB']", Verdict.CORRECT),
        ("assert apply(lambda x: apply(lambda y: x + y, 1), 2) == [[3]]", Verdict.CORRECT),
        ("try: apply(lambda x: 1 / x, 0)\nexcept ZeroDivisionError: pass\nelse: assert False", Verdict.CORRECT),
        ("assert half(1) == Fraction(1, 2)\nassert half(2) == 1", Verdict.CORRECT),
        ("from fractions import Fraction\nassert half(1) == Fraction(1, 2)", Verdict.CORRECT),
        ("assert letters('aab') == {'a': 2, 'b': 1}", Verdict.CORRECT),
        ("assert letters('aab').most_common(1) == [('a', 2)]", Verdict.CORRECT),
        ("assert queue([1, 2, 3])[0:2] == [3, 2]", Verdict.CORRECT),
        ("import solution\nassert solution.queue([1, 2]) == [2, 1]", Verdict.CORRECT),
        ("from solution import queue\nassert queue([1, 2]) == [2, 1]", Verdict.CORRECT),
        ("assert math.isclose(half(1), 0.5)", Verdict.CORRECT),
        ("with Block() as block: assert block.entered == 1", Verdict.CORRECT),
        ("with Block() as block: assert block.entered == 2", Verdict.WRONG),
        ("assert half(1) == 1", Verdict.WRONG),
        ("assert letters('aab') == {'a': 1}", Verdict.WRONG),
        ("assert apply(lambda x: x + 1, 1) == [3]", Verdict.WRONG),
        ("from solution import nothing", Verdict.WRONG),
        ("import pytest\nassert True", Verdict.FAILED),
        ("assert (", Verdict.FAILED),
        ("def test_one(fixture): pass", Verdict.FAILED),
        ("class Own: pass\napply(len, Own())", Verdict.FAILED),
        (
            "import unittest\nclass T(unittest.TestCase):\n    @unittest.skip('')\n    def test(self): pass",
            Verdict.FAILED,
        ),
    ],
)
def test_what_unit_tests_may_ask(tests: str, verdict: Verdict, judge: Judge, run: Run) -> None:
    reward = run(judge.judge(Problem(unit_tests=tests), ODD))
    assert reward.verdict is verdict, reward.reason


CHECKERS = {
    "python": "import sys\nsys.exit(0 if int(open(sys.argv[2]).read()) % 2 else 1)",
    "cpp": "#include <fstream>\n"
    "int main(int, char **words) { std::ifstream in(words[2]); int n; in >> n; return !(n % 2); }",
}


@pytest.mark.parametrize("language", sorted(CHECKERS))
def test_a_checker_decides(language: str, judge: Judge, run: Run) -> None:
    checker = Checker(language=language, source=CHECKERS[language])  # type: ignore[arg-type]
    problem = Problem(tests=[StreamTest(output="any odd number")], checker=checker)
    odd, even, none = run(judge.judge_all([(problem, "print(7)"), (problem, "print(8)"), (problem, "print('x')")]))
    assert (odd.verdict, even.verdict) == (Verdict.CORRECT, Verdict.WRONG), odd.reason
    assert none.score == 0


def test_a_broken_checker_is_failed_not_wrong(judge: Judge, run: Run) -> None:
    checker = Checker(language="python", source="import sys\nsys.exit(3)")
    problem = Problem(tests=[StreamTest(output="7")], checker=checker)
    assert run(judge.judge(problem, "print(7)")).verdict is Verdict.FAILED


def test_a_lost_worker_costs_no_verdict(sandbox: Sandbox, judge: Judge, run: Run) -> None:
    for process in psutil.Process().children():
        process.send_signal(signal.SIGKILL)
    rewards: list[Reward] = run(judge.judge_all([(Problem(tests=TESTS), SUMS["python"])] * 4))
    assert [reward.verdict for reward in rewards] == [Verdict.CORRECT] * 4


def test_a_cancelled_call_frees_its_worker(run: Run) -> None:
    async def cancel() -> bytes:
        async with Sandbox(SandboxConfig(workers=1)) as sandbox:
            forever = Task(kind="python", limits=program_limits(CONFIG), files={"main.py": b"while True: pass"})
            quick = Task(kind="python", limits=program_limits(CONFIG), files={"main.py": b"print(1)"})
            running = asyncio.create_task(sandbox.run(forever))
            await asyncio.sleep(0)  # it has the worker
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return (await sandbox.run(quick)).stdout

    assert run(cancel()) == b"1\n"


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailableError, match="unsafe_without_isolation=true"):
        run(Sandbox(CONFIG).__aenter__())


def test_without_bubblewrap_it_runs_where_the_user_insists(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("PATH", "")

    async def insist() -> list[Reward]:
        config = SandboxConfig(workers=1, unsafe_without_isolation=True)
        async with Sandbox(config) as sandbox:
            problems = [(Problem(language=name, tests=TESTS), SUMS[name]) for name in ("python", "cpp")]  # type: ignore[arg-type]
            return await Judge(sandbox, config).judge_all(problems)

    assert [reward.verdict for reward in run(insist())] == [Verdict.CORRECT] * 2


def test_the_verifier_reads_the_last_block() -> None:
    answer = json.dumps({"tests": [{"input": "1 2", "output": "3"}]})
    response = f"First `a`, then\n```python\n{SUMS['python']}\n```\nis right."
    verifier = CodeVerifier(RewardConfig(sandbox=CONFIG))
    try:
        both = verifier.verify_group(prompt(answer), responses("no code", response))
        assert [reward.verdict for reward in both] == [Verdict.UNPARSABLE, Verdict.CORRECT]
        with pytest.raises(AnswerError, match=r"d.jsonl:7: tests, calls, unit_tests"):
            verifier.verify_group(prompt("{}"), responses(response))
    finally:
        verifier.close()


def test_the_offline_command(tmp_path: Path) -> None:
    problem = {"tests": [{"input": "1 2", "output": "3"}]}
    lines = [{"problem": problem, "source": source} for source in (SUMS["python"], "print(4)")]
    path = tmp_path / "submissions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(JOBS / "judge.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    verdicts = {line["line"]: line["verdict"] for line in map(json.loads, done.stdout.splitlines())}
    assert verdicts == {1: "correct", 2: "wrong"}
    path.write_text(json.dumps({"problem": {"tests": []}, "source": ""}))
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "line 1: tests, calls, unit_tests" in refused.stderr


def test_a_program_has_no_rights(sandbox: Sandbox, run: Run) -> None:
    source = b"print(open('/proc/self/status').read())"
    done = run(sandbox.run(Task(kind="python", limits=program_limits(CONFIG), files={"main.py": source})))
    assert done.ending is Ending.DONE, done.reason
    status = dict(line.split(":\t", 1) for line in done.stdout.decode().splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if os.geteuid() == 0:
        assert "0" not in status["Uid"].split()


def test_a_problem_is_read_as_it_was_written() -> None:
    assert read_problem('{"tests": [{"input": "1", "output": "2"}]}').tests == [StreamTest(input="1", output="2")]
