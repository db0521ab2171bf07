"""What a forked interpreter becomes: a Python program, one call of a function, or a submission and what tests it."""

import atexit
import builtins
import gc
import importlib
import os
import signal
import site
import socket
import sys
import threading
import traceback
from types import ModuleType
from typing import NoReturn, TextIO

from ring_ray.rewards.sandbox.inside import unit_tests, values
from ring_ray.rewards.sandbox.inside.protocol import Request
from ring_ray.rewards.sandbox.inside.remote import SubmissionPeer

MAIN, TESTS = "main.py", "tests.py"

# Imported before the fork, so that no program pays for them. None starts threads or keeps what it read.
COMMON = (
    "array", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "heapq", "io", "itertools", "json", "linecache", "math", "operator", "queue", "random", "re", "statistics",
    "string", "textwrap", "threading", "time", "traceback", "types", "typing", "unittest",
)  # fmt: skip


def import_common() -> None:
    for name in COMMON:
        importlib.import_module(name)
    for define in (site.setquit, site.setcopyright, site.sethelper):  # exit() and its like, as without -S
        define()


def run(request: Request, result: int, peer: socket.socket | None, tests: bytes | None) -> NoReturn:
    """``tests`` are given to the process that tests, alone.

    The interpreter's streams are those of the worker, which has never used them, on other descriptors.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.enable()
    sys.argv = [MAIN if tests is None else TESTS, *request.command]
    try:
        if peer is not None and tests is not None:
            unit_tests.test(peer, tests)
            os.write(result, unit_tests.PASSED)
            end(0)
        module = load(MAIN)
        if peer is not None:
            SubmissionPeer(peer, module).serve()
        elif request.kind == "function":
            _call(module, request.entry, result)
    except SystemExit as error:
        end(_exit_status(error))
    except BaseException:  # noqa: BLE001  (whatever ends a program ends it with a traceback)
        traceback.print_exc()
        end(1)
    end(0)


def _exit_status(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    sys.stderr.write(f"{error.code}\n")
    return 1


def end(status: int) -> NoReturn:
    """As after any program: threads joined, what is registered called, buffers written.

    But modules are not taken apart one by one: that would cost more than most programs.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
        atexit._run_exitfuncs()
        _flush(sys.stdout, sys.stderr)  # while there is what the program defined: its own streams may need it
        vars(sys.modules["__main__"]).clear()  # what was never closed is written
        _flush(sys.__stdout__, sys.__stderr__)
    except BaseException:  # noqa: BLE001  (a program may replace all of these)
        os._exit(status or 120)  # as the interpreter does where its output can't be written
    os._exit(status)


def _flush(*streams: TextIO | None) -> None:
    for stream in streams:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def load(path: str) -> ModuleType:
    """Run a file as ``__main__``, in place of the worker's own."""
    module = ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # the sandbox is for this
    return module


def _call(module: ModuleType, entry: str, result: int) -> None:
    """``entry`` is a function, or ``Class.method`` of an object made without arguments."""
    arguments, keywords = values.loads(sys.stdin.buffer.read())
    owner, _, name = entry.rpartition(".")
    target = getattr(getattr(module, owner)(), name) if owner else getattr(module, name)
    text = values.dumps(target(*arguments, **keywords))
    with open(result, "w", closefd=False) as file:
        file.write(text)
