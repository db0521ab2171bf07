"""Programs that want to be judged right without being right."""

from ring_ray.rewards.sandbox.problem import CallTest, Problem, StreamTest
from tests.integration.sandbox_attacks.attack import ANYHOW, Attack, attack

PRINTS = Problem(tests=[StreamTest(input="1", output="an answer that no program can know")], cpu_seconds=1.0)
SUITE = Problem(
    unit_tests="import unittest\ndef test_it():\n    assert square(3) == 9\n"
    "class T(unittest.TestCase):\n    def test_it(self): self.assertEqual(square(3), 9)\n"
    "    def test_errors(self): self.assertRaises(TypeError, square)",
    cpu_seconds=1.0,
)
CALLS = Problem(calls=[CallTest(arguments=[3], returns=9)], entry="square", cpu_seconds=1.0)
TESTED = Problem(
    unit_tests="assert square(3) == 9\nassert 9 == square(3)\nassert abs(square(0.5) - 0.25) < 1e-6", cpu_seconds=1.0
)
STARRED = Problem(
    unit_tests="from math import isclose\nfrom unittest import TestCase\nfrom solution import *\n"
    "assert abs(square(0.5) - 0.25) < 1e-6\nassert isclose(square(0.5), 0.25)\n"
    "class T(TestCase):\n    def test_it(self): self.assertEqual(square(3), 9)",
    cpu_seconds=1.0,
)
SORTS = Problem(unit_tests="numbers = [2, 1]\nassert f(numbers) == sorted(numbers)", cpu_seconds=1.0)
WORKER = '{"id": "", "status": 0, "stopped": "", "failed": "", "cpu_seconds": 0, "wall_seconds": 0, "peak_bytes": 0}'

EVERYTHING = """
class Everything(int):
    def same(self, *others): return True
    def me(self, *others): return self
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = same
    __sub__ = __rsub__ = __add__ = __abs__ = __getitem__ = me
    def __ne__(self, other): return False
    def __hash__(self): return 0
def square(number): return Everything()
"""


def forged(name: str, source: str, *problems: Problem) -> list[Attack]:
    kinds = ("prints", "calls", "is tested", "has a suite", "is imported", "sorts")
    everything = (PRINTS, CALLS, TESTED, SUITE, STARRED, SORTS)
    chosen = problems or everything
    return [
        attack(f"{name} ({kinds[everything.index(problem)]})", source, *ANYHOW, problem=problem) for problem in chosen
    ]


ATTACKS = [
    *forged("ends well at once", "import os\nos._exit(0)"),
    *forged("ends well by an exception", "raise SystemExit(0)"),
    *forged("ends well within the call", "def square(number): raise SystemExit(0)", CALLS, TESTED),
    *forged(
        "says on every descriptor that it passed",
        """
        import os
        for fd in range(1, 256):
            for text in (b"passed", b"9"):
                try: os.write(fd, text)
                except OSError: pass
        def square(number): return 0
        """,
    ),
    *forged(
        "answers in the worker's place",
        f"""
        import os, socket
        for fd in range(256):
            try: socket.socket(fileno=os.dup(fd)).send(b'''{WORKER}''')
            except OSError: pass
        os._exit(0)
        """,
    ),
    *forged("equals everything", EVERYTHING, CALLS, TESTED),
    *forged(
        "a class of its own with a plain name",
        EVERYTHING.replace("Everything", "int_").replace("int_(int)", "int_"),
        CALLS,
        TESTED,
    ),
    *forged(
        "replaces what tests use",
        """
        import builtins, math, unittest
        builtins.abs = lambda value: 0
        builtins.len = lambda value: 9
        unittest.TestCase.assertEqual = lambda *arguments: None
        AssertionError = SystemExit
        def abs(value): return 0
        def square(number): return 0
        """,
        TESTED,
    ),
    *forged(
        "looks for the tests",
        """
        import glob
        found = b""
        paths = [glob.glob(pattern) for pattern in ("/tmp/*", "/proc/*/cmdline", "/proc/*/mem", "/proc/*/fd/*")]
        for path in sum(paths, []):
            try: found += open(path, "rb").read(1 << 20)
            except OSError: pass
        def square(number): return number * number if b"52.0"[::-1] in found else 0
        """,
        TESTED,
    ),
    *forged(
        "looks for the tests in the memory that it was forked with",
        """
        import ctypes, re
        tests, found = re.compile(re.escape(b")5.0(erauqs"[::-1]) + rb" - [0-9.]+"), []
        for line in open("/proc/self/maps"):
            span, mode = line.split()[:2]
            if mode.startswith("r") and "[v" not in line:
                start, stop = (int(end, 16) for end in span.split("-"))
                found += tests.findall(ctypes.string_at(start, stop - start))
        def square(number): return number * number if found else 0
        """,
        TESTED,
    ),
    *forged(
        "kills who tests it",
        """
        import os, signal
        for pid in range(2, 64):
            if pid != os.getpid():
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
        def square(number): return 0
        """,
        TESTED,
    ),
    *forged(
        "answers nonsense on the tests' channel",
        """
        import json, os
        for fd in range(3, 16):
            raised = {"raised": "SystemExit", "message": "0"}
            for line in ('["square"]', '{"value": {"remote": -1}}', json.dumps(raised), "[" * 9999):
                try: os.write(fd, line.encode() + b"\\n")
                except OSError: pass
        """,
        TESTED,
    ),
    *forged(
        "is imported in place of what the tests use",
        """
        class Nothing:
            def __mro_entries__(self, bases): return ()
        TestCase = Nothing()
        def abs(value): return 0
        def isclose(*values): return True
        def square(number): return 0
        """,
        STARRED,
    ),
    *forged("empties what it is given", "def f(numbers):\n    numbers.clear()\n    return []", SORTS),
    *forged(
        "says that what it was given has changed",
        """
        import sys
        remote = next(module for name, module in sys.modules.items() if name.endswith("inside.remote"))
        def answer(self, question):
            number, operation, arguments, keywords = remote.values.loads(question, self.meant)
            value = self.OPERATIONS[operation](self.meant(number), *arguments, **keywords)
            message = {"value": value, "changed": [[] for _ in arguments]}
            self._send({name: remote.values.dumps(part, self.number) for name, part in message.items()})
        remote.Peer._answer = answer
        def f(numbers): return []
        """,
        SORTS,
    ),
    *forged("a huge return value", "def square(number): return ['x' * 1000] * 10**6", CALLS, TESTED),
    *forged(
        "an endless return value",
        "def square(number):\n    loop = []\n    loop.append(loop)\n    return loop",
        CALLS,
        TESTED,
    ),
    *forged(
        "a return value that takes for ever to read",
        "def square(number): return set((2**61 - 1) * factor for factor in range(1, 40_000))",
        CALLS,
    ),
    *forged("a return value that takes long to print", "def square(number): return 7 ** 10**6", CALLS, TESTED),
    *forged(
        "defines what the tests define",
        "def test_it(): pass\nclass T: pass\nclass unittest: pass\ndef square(number=1): return 0",
        SUITE,
    ),
    *forged(
        "says how tests are loaded",
        "def load_tests(*things): return []\ndef setUpModule(): raise SystemExit(0)\n__tests__ = 1\n"
        "def square(number=1): return 0",
        SUITE,
    ),
    *forged(
        "wants the tests to be at fault",
        """
        def square(number=1):
            raise ModuleNotFoundError("UnsupportedError: SkipTest: the tests import what is not there", name="pytest")
        """,
    ),
    *forged(
        "interrupts the first process",
        """
        import os, signal
        for number in set(signal.Signals) - {signal.SIGKILL}:
            try: os.kill(1, number)
            except OSError: pass
        def square(number=1): return 0
        """,
    ),
    *forged("ends as if the tests could not be run", "import os\nos._exit(77)"),
    *forged("not a number", "def square(number): return float('nan')"),
]
