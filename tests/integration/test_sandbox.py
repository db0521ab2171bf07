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
    assert "error" in reward.reason.casefold()


@pytest.mark.parametrize(
    ("language", "source", "said"),
    [
        ("python", "def f():\n    raise ValueError('no')\nf()", "ValueError: no"),
        ("cpp", '#include <stdexcept>\nint main() { throw std::runtime_error("no"); }', "std::runtime_error"),
        (
            "java",
            'public class Main { public static void main(String[] words) { throw new RuntimeException("no"); } }',
            "RuntimeException: no",
        ),
    ],
)
def test_the_reason_says_what_a_program_raised(language: str, source: str, said: str, judge: Judge, run: Run) -> None:
    reward = run(judge.judge(Problem(language=language, tests=TESTS), source))  # type: ignore[arg-type]
    assert reward.verdict is Verdict.WRONG
    assert reward.reason.startswith("test 1 of 3: ended ")
    assert said in reward.reason


@pytest.mark.parametrize(
    "source",
    [
        "print(7)\nexit()",
        "print(7)\nquit(0)",
        "print(open('/dev/stdin').read())",
        "import sys\nprint(7)\nsys.stdout.close()",
        "import sys\nprint(7)\nsys.stdout.flush()\nsys.stdout = None",
        "import sys\nclass Late:\n    text = ''\n    def write(self, text): self.text += text\n"
        "    def flush(self): sys.__stdout__.write(self.text); self.text = ''\nsys.stdout = Late()\nprint(7)",
        "from concurrent.futures import ThreadPoolExecutor\nfrom time import sleep\n"
        "with ThreadPoolExecutor(32) as pool: list(pool.map(sleep, [0.1] * 32))\nprint(7)",
        "from multiprocessing import Process, Value\ndef add(total): total.value += 7\ntotal = Value('i')\n"
        "process = Process(target=add, args=(total,))\nprocess.start()\nprocess.join()\nprint(total.value)",
    ],
)
def test_python_as_it_is_outside(source: str, judge: Judge, run: Run) -> None:
    reward = run(judge.judge(Problem(tests=[StreamTest(input="7", output="7")]), source))
    assert reward.verdict is Verdict.CORRECT, reward.reason


def test_a_program_of_much_data_runs(judge: Judge, run: Run) -> None:
    """Larger than each file that the program may write."""
    source = "#include <iostream>\nint data[5'000'000] = {7};\nint main() { std::cout << data[0]; }"
    reward = run(judge.judge(Problem(language="cpp", tests=[StreamTest(output="7")]), source))
    assert reward.verdict is Verdict.CORRECT, reward.reason


def test_a_program_that_the_kernel_refuses_is_wrong(judge: Judge, run: Run) -> None:
    """The name of its loader must end in a zero."""
    source = 'extern const char loader[] __attribute__((section(".interp"), used)) = {1};\nint main() {}'
    reward = run(judge.judge(Problem(language="cpp", tests=[StreamTest()]), source))
    assert reward.verdict is Verdict.WRONG
    assert reward.reason.startswith("test 1 of 1: ended with exit status 126")


def test_page_tables_are_memory(judge: Judge, run: Run) -> None:
    """Java reserves what it likes; reading it takes a page of tables for each two megabytes, and nothing else."""
    source = """
        public class Main { public static void main(String[] words) throws Exception {
            var field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
            field.setAccessible(true);
            var unsafe = (sun.misc.Unsafe) field.get(null);
            for (int part = 0; part < 200; part++) {
                long start = unsafe.allocateMemory(4L << 30);
                for (long place = 0; place < 4L << 30; place += 2 << 20) unsafe.getByte(start + place);
            } } }
    """
    problem = Problem(language="java", tests=[StreamTest()], cpu_seconds=30, memory_mib=256)
    assert run(judge.judge(problem, source)).reason == "test 1 of 1: used more than 256 MiB"


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


def test_the_reason_says_briefly_what_was_returned(judge: Judge, run: Run) -> None:
    problem = Problem(calls=[CallTest(arguments=[3], returns=9)], entry="f")
    assert run(judge.judge(problem, "def f(x): return x")).reason == "test 1 of 1: f returns 3, not 9"
    nested = "def f(x):\n    for _ in range(6): x = [x] * 6\n    return x"
    assert run(judge.judge(problem, nested)).reason.startswith("test 1 of 1: f returns [[[[[[")
    assert len(run(judge.judge(problem, nested)).reason) < 200


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
    assert "submissions.jsonl: line 1: tests, calls, unit_tests" in refused.stderr


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
