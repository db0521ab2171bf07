"""A memory limit that the kernel holds, for all processes of a worker together: cgroup version 2."""

import os
from contextlib import suppress
from pathlib import Path

from ring_ray.config import ConfigError

_WORKER_BYTES = 64 << 20  # the worker itself is in there as well
_JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'  # before bubblewrap starts anything


class MemoryGroup:
    """``parent`` is reward.sandbox.cgroup; `joining` raises `ConfigError` where it can't be used."""

    def __init__(self, parent: str, name: str) -> None:
        self._parent, self._path = parent, Path(parent, name)

    def joining(self, command: list[str]) -> list[str]:
        """``command``, whose processes are then all in the group."""
        try:
            Path(self._parent, "cgroup.subtree_control").write_text("+memory")
            self._path.mkdir(exist_ok=True)
            (self._path / "memory.swap.max").write_text("0")
        except OSError as error:
            raise ConfigError(
                f"reward.sandbox.cgroup={self._parent!r}: must be an empty, writable cgroup (version 2) that has the "
                f"memory controller ({error})"
            ) from error
        return ["/bin/sh", "-c", _JOIN, str(self._path), *command]

    def limit(self, memory_bytes: int) -> None:
        (self._path / "memory.max").write_text(str(memory_bytes + _WORKER_BYTES))

    def kills(self) -> int:
        """How often the kernel has killed for memory."""
        lines = (self._path / "memory.events").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    def remove(self) -> None:
        with suppress(OSError):  # it has processes for a moment longer; an empty group costs next to nothing
            os.rmdir(self._path)
