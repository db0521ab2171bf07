"""What an attack is."""

import textwrap
from dataclasses import dataclass, field

from ring_ray.rewards.sandbox.execution import Ending
from ring_ray.rewards.sandbox.problem import Problem

ESCAPED = "escaped"
ANYHOW = frozenset(Ending) - {Ending.FAILED}  # nobody may make his verdict ours to answer for

# A program prints whether it was held back. What must not be possible is an action that raises, or gives nothing.
PRELUDE = """
import ctypes, errno, glob, mmap, os, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        got = action()
    except Exception as error:
        print("contained", type(error).__name__, error)
    else:
        print("escaped", repr(got)[:300]) if got not in (None, b"", "", [], False) else print("contained")
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"
"""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A Python program; ``@NAME@`` in it is replaced by what the test knows: PORT, SECRET_FILE, SECRET, JUDGE.

    It must end in one of ``endings``, and never print "escaped". With a ``problem`` it must not be judged right either.
    """

    name: str
    source: str
    endings: frozenset[Ending] = field(default=frozenset({Ending.DONE}))
    problem: Problem | None = None

    def program(self, facts: dict[str, str]) -> str:
        source = (PRELUDE if self.problem is None else "") + textwrap.dedent(self.source)
        for name, value in facts.items():
            source = source.replace(f"@{name}@", value)
        return source


def attack(name: str, source: str, *endings: Ending, problem: Problem | None = None) -> Attack:
    return Attack(name=name, source=source, endings=frozenset(endings or {Ending.DONE}), problem=problem)
