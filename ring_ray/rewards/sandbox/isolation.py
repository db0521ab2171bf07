"""The command line of a worker: what bubblewrap lets it see."""

import glob
import os
import shutil
import sys
from pathlib import Path

from ring_ray.config import ConfigError
from ring_ray.rewards.sandbox import inside
from ring_ray.rewards.sandbox.languages import SYSTEM_PATH

_INSIDE = Path(inside.__file__).parent
_MOUNTED = "/sandbox"
_USER = "1000"  # of a user namespace; not 0, who would own the /proc entries of what is not dumpable
_ENVIRONMENT = {
    "PATH": SYSTEM_PATH,
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # each reserves 64 MiB of the address space: a few threads would reach its limit
}
# To enter namespaces, mount, end its forks, and become somebody who may do none of that.
_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL")
# Programs find their parts in /usr by these: commands, libraries, a JDK.
_ETC = ("/etc/alternatives", "/etc/ld.so.cache", *sorted(glob.glob("/etc/java-*")))
# Not bubblewrap's own choice: for pseudoterminals it makes a second user namespace, which may not enter the first.
# Nor /dev/zero: what is mapped from it belongs to no process, and no limit would see it.
_DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
_STREAMS = {"/dev/fd": "", "/dev/stdin": "/0", "/dev/stdout": "/1", "/dev/stderr": "/2"}
_START = f"import sys; sys.path.insert(0, {_MOUNTED!r}); from {inside.__name__}.worker import main; main()"


class SandboxUnavailableError(ConfigError):
    """Isolation can't be had here. The message says why, and what would help."""


def environment() -> dict[str, str]:
    """All that a worker and its programs inherit."""
    return dict(_ENVIRONMENT)


def isolated_command(channel: int, first_user: int) -> list[str]:
    """Of a worker that talks through descriptor ``channel``; its programs are users ``first_user`` and the next.

    Where this process is not root, bubblewrap makes a user namespace, which has one user. Raises
    `SandboxUnavailableError` where there is no bubblewrap.
    """
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise SandboxUnavailableError("code needs bubblewrap to be judged: apt install bubblewrap")
    namespaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() != 0:
        namespaces += ["--unshare-user", "--uid", _USER, "--gid", _USER]
        first_user = 0
    privileges = ["--cap-drop", "ALL", *(word for name in _CAPABILITIES for word in ("--cap-add", name))]
    variables = [word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)]
    return [
        *(bubblewrap, *namespaces, "--die-with-parent", "--new-session", "--hostname", "sandbox"),
        *(*privileges, "--clearenv", *variables),
        *_mounts(),
        *("--remount-ro", "/", "--chdir", "/tmp", "--"),
        *_worker(channel, first_user, isolated=True),
    ]


def bare_command(channel: int) -> list[str]:
    """Of a worker without isolation, for reward.sandbox.unsafe_without_isolation."""
    root = _INSIDE.parents[len(inside.__name__.split(".")) - 1]
    command = _worker(channel, 0, isolated=False)
    return [word.replace(repr(_MOUNTED), repr(str(root))) for word in command]


def _worker(channel: int, first_user: int, *, isolated: bool) -> list[str]:
    python = os.path.realpath(sys.executable)  # not the virtual environment's link, which is not mounted
    flags = ["-I", "-S", "-B", "-X", "utf8"]
    return [python, *flags, "-c", _START, str(channel), str(first_user), str(int(isolated))]


def _mounts() -> list[str]:
    """System programs, the interpreter and the worker's code, for reading only; nothing of anybody's data."""
    words = [*_read_only("/usr")]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += _read_only(name)
    for name in filter(os.path.exists, _ETC):
        words += _read_only(name)
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        words += _read_only(sys.base_prefix)
    words += ["--proc", "/proc", "--dir", "/tmp", "--dir", "/dev/shm"]
    words += [word for name, end in _STREAMS.items() for word in ("--symlink", f"/proc/self/fd{end}", name)]
    words += [word for name in _DEVICES for word in ("--dev-bind", name, name)]
    return [*words, *_read_only(str(_INSIDE), f"{_MOUNTED}/{inside.__name__.replace('.', '/')}")]


def _read_only(source: str, target: str | None = None) -> list[str]:
    """``target`` is ``source`` where none is given. Left to bubblewrap, only its user may enter what is above it."""
    place = target or source
    above = [str(directory) for directory in reversed(Path(place).parents[:-1])]
    return [*(word for name in above for word in ("--dir", name)), "--ro-bind", source, place]
