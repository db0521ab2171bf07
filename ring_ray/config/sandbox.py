"""What code that a model wrote may use while it is judged."""

from dataclasses import dataclass

from ring_ray.config.check import require
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class SandboxConfig:
    """The sandbox that runs code written by a model (docs/sandbox.md). Limits are for one program on one test."""

    workers: int = key(2, "Programs that one judge runs at a time; more than cores make time limits unfair.")
    cpu_seconds: float = key(4.0, "Processor time of a process, where the problem names no limit.")
    wall_seconds: float = key(10.0, "Time after which a program and all that it started is killed.")
    compile_seconds: float = key(30.0, "Processor time of a compiler.")
    verdict_seconds: float = key(
        120.0, "Time of one verdict, compiling and all tests; one that takes longer is `timed out`."
    )
    memory_mib: int = key(512, "MiB of all processes of a program together, where the problem names no limit.")
    output_mib: int = key(16, "MiB that a program may print, and MiB of each file that it writes.")
    disk_mib: int = key(64, "MiB of all files that a program writes.")
    processes: int = key(64, "Processes and threads at a time.")
    files: int = key(64, "Open files of a process.")
    runs_per_worker: int = key(10_000, "Programs after which a worker is replaced by a fresh one.")
    cache_mib: int = key(256, "MiB of compiled programs that are kept, so that the same source compiles once.")
    cgroup: str | None = key(
        None,
        "Directory of an empty, writable cgroup (version 2) whose children may limit memory: the kernel then holds "
        "the limit. null looks at the processes' memory every few milliseconds.",
    )
    unsafe_without_isolation: bool = key(
        False,
        "DANGEROUS. Where bubblewrap does not work, run model-written code all the same, as this user: it can read, "
        "change and send away whatever this user can.",
    )

    def __post_init__(self) -> None:
        for name in ("workers", "memory_mib", "output_mib", "disk_mib", "processes", "files", "runs_per_worker"):
            require(getattr(self, name) >= 1, f"reward.sandbox.{name}", getattr(self, name), "must be at least 1")
        require(self.workers <= 64, "reward.sandbox.workers", self.workers, "must be at most 64; start another judge")
        for name in ("cpu_seconds", "wall_seconds", "compile_seconds", "verdict_seconds"):
            require(getattr(self, name) > 0, f"reward.sandbox.{name}", getattr(self, name), "must be above 0")
        require(self.cache_mib >= 0, "reward.sandbox.cache_mib", self.cache_mib, "must not be negative")
