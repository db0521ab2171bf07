"""What is asked of the sandbox, and what came of it."""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.inside.protocol import Answer, Kind, Limits
from ring_ray.rewards.sandbox.languages import TOOLCHAINS, run_command


class Ending(StrEnum):
    DONE = "done"
    CRASHED = "crashed"  # another exit status than 0, or a signal
    TIME_LIMIT = "time limit"
    MEMORY_LIMIT = "memory limit"
    OUTPUT_LIMIT = "output limit"
    FAILED = "failed"  # the sandbox, not the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One program on one input."""

    kind: Kind
    limits: Limits
    files: dict[str, bytes]  # by name in the empty directory that the program starts in
    stdin: bytes = b""
    command: list[str] = field(default_factory=list)  # of kind "command"; of the others, a program's arguments
    entry: str = ""  # of kind "function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    ending: Ending
    reason: str  # one short line for people
    exit_code: int | None = None  # None where there is none: a signal, a limit
    stdout: bytes = b""
    stderr: bytes = b""
    result: bytes = b""  # what was returned or compiled
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0


def program_limits(
    config: SandboxConfig, language: str = "python", cpu_seconds: float | None = None, memory_mib: int | None = None
) -> Limits:
    """Of one run; None is the config's."""
    memory = (memory_mib or config.memory_mib) << 20
    cpu = cpu_seconds or config.cpu_seconds
    reserves = language in TOOLCHAINS and TOOLCHAINS[language].reserves_address_space
    return Limits(
        cpu_seconds=cpu,
        wall_seconds=max(config.wall_seconds, 2 * cpu),
        memory_bytes=memory,
        address_bytes=None if reserves else memory + (64 << 20),
        output_bytes=config.output_mib << 20,
        disk_bytes=config.disk_mib << 20,
        processes=config.processes,
        files=config.files,
    )


def program_task(
    language: str, files: dict[str, bytes], limits: Limits, *, stdin: bytes = b"", arguments: Iterable[str] = ()
) -> Task:
    """A run of ``files``: of the source, or of what was compiled."""
    if language not in TOOLCHAINS:
        return Task(kind="python", limits=limits, files=files, stdin=stdin, command=[*arguments])
    command = [*run_command(language, limits.memory_bytes), *arguments]
    return Task(kind="command", limits=limits, files=files, stdin=stdin, command=command)


def compile_limits(config: SandboxConfig) -> Limits:
    """Generous: compilers are ours, and only their input is the model's."""
    return Limits(
        cpu_seconds=config.compile_seconds,
        wall_seconds=2 * config.compile_seconds,
        memory_bytes=max(config.memory_mib, 2048) << 20,
        output_bytes=64 << 20,
        disk_bytes=256 << 20,
        processes=max(config.processes, 256),
        files=max(config.files, 1024),
    )


def conclude(answer: Answer, limits: Limits, written: dict[str, bytes], killed_for_memory: bool) -> Execution:
    """``written`` has stdout, stderr and result, each cut off at ``limits.output_bytes``."""
    ending, reason, code = _ending(answer, limits, max(map(len, written.values()), default=0), killed_for_memory)
    return Execution(
        ending=ending,
        reason=reason,
        exit_code=code,
        cpu_seconds=answer.cpu_seconds,
        wall_seconds=answer.wall_seconds,
        peak_bytes=answer.peak_bytes,
        **written,
    )


def _ending(answer: Answer, limits: Limits, longest: int, killed_for_memory: bool) -> tuple[Ending, str, int | None]:
    if answer.stopped == "memory" or killed_for_memory:
        return Ending.MEMORY_LIMIT, f"used more than {limits.memory_bytes >> 20} MiB", None
    if answer.failed:
        return Ending.FAILED, answer.failed, None
    if answer.stopped == "time" or answer.status is None:
        return Ending.TIME_LIMIT, f"ran longer than {limits.wall_seconds:g} s", None
    code = os.waitstatus_to_exitcode(answer.status)
    if longest >= limits.output_bytes or code == -signal.SIGXFSZ:
        return Ending.OUTPUT_LIMIT, f"wrote more than {limits.output_bytes >> 20} MiB", None
    if answer.cpu_seconds > limits.cpu_seconds or code == -signal.SIGXCPU:
        return Ending.TIME_LIMIT, f"used more than {limits.cpu_seconds:g} s of processor time", None
    if code < 0:
        return Ending.CRASHED, f"ended by {signal.Signals(-code).name}", None
    if code > 0:
        return Ending.CRASHED, f"ended with exit status {code}", code
    return Ending.DONE, "done", 0
