"""Problems are checked before anything runs, and what came of a run is told apart."""

import errno
import json
import mmap
import signal
import socket
import struct
from pathlib import Path

import pytest

from ring_ray.config import ConfigError, SandboxConfig
from ring_ray.rewards.code import last_code_block
from ring_ray.rewards.sandbox import isolation
from ring_ray.rewards.sandbox.batch import read_submission
from ring_ray.rewards.sandbox.execution import Ending, conclude, program_limits
from ring_ray.rewards.sandbox.inside import kernel
from ring_ray.rewards.sandbox.inside.protocol import Answer, Limits, Request
from ring_ray.rewards.sandbox.problem import ProblemError, read_problem

LIMITS: Limits = program_limits(SandboxConfig(output_mib=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one"),
        ({"tests": [{}], "unit_tests": "assert True"}, "exactly one"),
        ({"tests": [{"inputs": "1"}]}, "inputs"),
        ({"language": "perl", "tests": [{}]}, r"language`: must be one of python, cpp, java$"),
        (
            {"tests": [{}], "checker": {"language": "c", "source": ""}},
            r"checker\.language`: must be one of python, cpp",
        ),
        ({"language": "cpp", "unit_tests": "assert True"}, "only for Python"),
        ({"calls": [{"arguments": [1], "returns": 1}]}, "entry"),
        ({"tests": [{}], "entry": "f"}, "entry"),
        ({"tests": [{}], "cpu_seconds": 0}, "cpu_seconds"),
        ({"tests": [{}], "memory_mib": -1}, "memory_mib"),
        ({"tests": [{}], "comparison": "fuzzy"}, r"comparison`: must be one of exact, lines, tokens, floats$"),
    ],
)
def test_a_bad_problem_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        read_problem(json.dumps(fields))


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, "\x00"])
def test_what_is_no_problem_is_refused(text: str) -> None:
    with pytest.raises(ProblemError):
        read_problem(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("print(1)", "line 3: each line must be one JSON object: Expecting value"),
        ("[]", "line 3: must be an object with the fields problem and source"),
        ('{"problem": {}}', "line 3: no field 'source'"),
        ('{"source": ""}', "line 3: no field 'problem'"),
        ('{"problem": {}, "source": 1}', "line 3: source must be text"),
        ('{"problem": {}, "source": ""}', "line 3: tests, calls, unit_tests"),
    ],
)
def test_a_bad_submission_is_refused_by_its_line(line: str, message: str) -> None:
    with pytest.raises(ProblemError, match=f"^{message}"):
        read_submission(line, 3)


@pytest.mark.parametrize("name", ["workers", "memory_mib", "cpu_seconds", "processes", "output_mib"])
def test_limits_must_be_above_0(name: str) -> None:
    with pytest.raises(ConfigError, match=f"reward.sandbox.{name}"):
        SandboxConfig(**{name: 0})


def answer(**fields: object) -> Answer:
    default = {"id": "", "status": 0, "stopped": "", "failed": "", "cpu_seconds": 0, "wall_seconds": 0, "peak_bytes": 0}
    return Answer(**default | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "output", "ending"),
    [
        (answer(), b"", Ending.DONE),
        (answer(status=3 << 8), b"", Ending.CRASHED),
        (answer(status=signal.SIGSEGV), b"", Ending.CRASHED),
        (answer(status=signal.SIGXCPU), b"", Ending.TIME_LIMIT),
        (answer(status=signal.SIGKILL, cpu_seconds=60.0), b"", Ending.TIME_LIMIT),
        (answer(status=signal.SIGXFSZ), b"", Ending.OUTPUT_LIMIT),
        (answer(status=1 << 8), b"x" * (1 << 20), Ending.OUTPUT_LIMIT),
        (answer(status=None, stopped="time"), b"", Ending.TIME_LIMIT),
        (answer(status=None, stopped="memory"), b"", Ending.MEMORY_LIMIT),
        (answer(status=None, failed="OSError"), b"", Ending.FAILED),
    ],
)
def test_how_a_program_ended(told: Answer, output: bytes, ending: Ending) -> None:
    assert conclude(told, LIMITS, {"stdout": output, "stderr": b"", "result": b""}, False).ending is ending


def test_the_kernel_killing_for_memory_is_the_memory_limit() -> None:
    killed = conclude(answer(status=signal.SIGKILL), LIMITS, {"stdout": b"", "stderr": b"", "result": b""}, True)
    assert killed.ending is Ending.MEMORY_LIMIT


def test_requests_and_answers_come_back_as_they_were() -> None:
    request = Request(id="a", kind="function", limits=LIMITS, entry="f", files=["main.py"])
    assert Request.parse(request.packet()) == request
    assert Answer.parse(answer().packet()) == answer()


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\nfirst\n```\nand\n```\nlast\n```\n```\nnever closed", "last\n"),
        ("no code, and `inline`", None),
        ("1. as\n   ```py\n   if 1:\n       a\n\n   b\n   ```\n", "if 1:\n    a\n\nb\n"),
        ("<think>\n```python\nnever closed\n</think>\n```python\nb\n```\nis right", "b\n"),
        ('```python\n"""\n  ```\n  f(1)\n  ```\n"""\n```', '"""\n  ```\n  f(1)\n  ```\n"""\n'),
        ("```python\r\na\r\n```\r\n", "a\r\n"),
        ("```\na\n``` is right", "a\n"),
    ],
)
def test_the_last_closed_block_is_the_program(response: str, code: str | None) -> None:
    assert last_code_block(response) == code


def test_the_filter_is_whole_instructions() -> None:
    program = kernel.seccomp_program()
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # the kernel's limit
    for start in range(0, len(program), 8):  # no jump leaves it
        assert start // 8 + max(program[start + 2], program[start + 3]) < len(program) // 8


def decided(number: int, *arguments: int, architecture: int = 0xC000003E) -> int:
    """What the filter returns for a system call, as the kernel reads it."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("HBBI", kernel.seccomp_program()))
    place = value = 0
    while True:
        code, then, otherwise, operand = program[place]
        match code:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, operand)
                place += 1
                continue
            case 0x06:
                return operand
            case 0x15:
                met = value == operand
            case 0x35:
                met = value >= operand
            case 0x45:
                met = bool(value & operand)
        place += 1 + (then if met else otherwise)


ALLOWED, REFUSED, UNKNOWN, KILLED = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000


@pytest.mark.parametrize(
    ("call", "decision"),
    [
        ((0,), ALLOWED),  # read
        ((101,), REFUSED),  # ptrace
        ((41, socket.AF_UNIX, socket.SOCK_STREAM), REFUSED),
        ((53, socket.AF_UNIX, socket.SOCK_STREAM), ALLOWED),  # socketpair
        ((53, socket.AF_VSOCK, socket.SOCK_DGRAM), REFUSED),
        ((56, signal.SIGCHLD), ALLOWED),  # clone
        ((56, 0x10000000 | signal.SIGCHLD), REFUSED),  # a user namespace
        ((9, 0, 4096, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), ALLOWED),
        ((9, 0, 4096, 3, mmap.MAP_SHARED), ALLOWED),  # of a file
        ((9, 0, 4096, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS), REFUSED),
        ((435,), UNKNOWN),  # clone3
        ((463,), UNKNOWN),
        ((0x40000000,), UNKNOWN),  # x32
    ],
)
def test_the_filter_decides(call: tuple[int, ...], decision: int) -> None:
    assert decided(*call) == decision
    assert decided(*call, architecture=0x40000003) == KILLED  # the 32-bit kind


def test_without_bubblewrap_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(isolation.SandboxUnavailableError, match="apt install bubblewrap"):
        isolation.isolated_command(3, 1000)


@pytest.mark.parametrize("user", [0, 1000])
def test_a_worker_sees_nothing_of_anybodys(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    monkeypatch.setattr(isolation.shutil, "which", lambda name: "/usr/bin/bwrap")
    monkeypatch.setattr(isolation.os, "geteuid", lambda: user)
    command = isolation.isolated_command(3, 1000)
    assert ("--unshare-user" in command) is (user != 0)
    assert {"--unshare-net", "--unshare-pid", "--clearenv", "--die-with-parent", "--new-session"} <= set(command)
    assert "--bind" not in command  # nothing is writable
    seen = {command[place + 1] for place, word in enumerate(command) if word.endswith("bind")}
    assert not {"/", "/home", "/root", "/etc", "/tmp", str(Path.cwd())} & seen
