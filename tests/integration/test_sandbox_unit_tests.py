"""Unit tests of a submission, which runs in another process: what they see of it, and what they can't ask."""

from collections.abc import Iterator

import pytest

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import Problem
from ring_ray.types import Verdict
from tests.conftest import Run

CONFIG = SandboxConfig(workers=2, wall_seconds=60)


@pytest.fixture(scope="module")
def judge(run: Run) -> Iterator[Judge]:
    sandbox = Sandbox(CONFIG)
    run(sandbox.__aenter__())
    yield Judge(sandbox, CONFIG)
    run(sandbox.__aexit__(None, None, None))


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
class AccountError(ValueError): pass
class EmptyError(AccountError): pass
def spend(number, *, target=None, self=None): raise EmptyError(f"{number} {target} {self}")
def order(items): items.sort()
def decode(data): return data.decode()
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
        ("assert isinstance(Block(), Block)\nassert not isinstance(3, Block)", Verdict.CORRECT),
        ("items = [[2, 1], [1]]\norder(items)\nassert items == [[1], [2, 1]]", Verdict.CORRECT),
        ("items = [2, 1]\norder(items=items)\nassert items == [1, 2]", Verdict.CORRECT),
        ("try: spend(number=1, target=2, self=3)\nexcept EmptyError as e: assert str(e) == '1 2 3'", Verdict.CORRECT),
        ("try: spend(1)\nexcept AccountError: pass\nassert issubclass(EmptyError, ValueError)", Verdict.CORRECT),
        ("try: spend(1)\nexcept KeyError: pass", Verdict.WRONG),
        ("try: decode(b'\\xff')\nexcept UnicodeDecodeError: pass", Verdict.CORRECT),
        ("from solution import *\nassert half(2) == 1", Verdict.CORRECT),
        ("from unittest.mock import Mock\nm = Mock()\napply(m, 3)\nm.assert_called_once_with(3)", Verdict.CORRECT),
        (
            "import unittest\ndef setUpModule():\n    global one\n    one = 1\n"
            "class T(unittest.TestCase):\n    def test(self): self.assertEqual(half(2), one)",
            Verdict.CORRECT,
        ),
        ("assert half(1) == 1", Verdict.WRONG),
        ("assert letters('aab') == {'a': 1}", Verdict.WRONG),
        ("assert apply(lambda x: x + 1, 1) == [3]", Verdict.WRONG),
        ("from solution import nothing\nnothing()", Verdict.WRONG),
        ("import pytest\nassert True", Verdict.FAILED),
        ("assert (", Verdict.FAILED),
        ("def test_one(fixture): pass", Verdict.FAILED),
        ("async def test_one(): assert False", Verdict.FAILED),
        ("def test_one():\n    yield\n    assert False", Verdict.FAILED),
        ("def check(candidate): assert candidate(1) == 7", Verdict.FAILED),
        ("class Own(Block): pass\nassert Own()", Verdict.FAILED),
        ("import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): half(1)", Verdict.FAILED),
        ("from unittest import mock\nwith mock.patch('builtins.print'): half(1)", Verdict.FAILED),
        ("import io, sys\nsys.stdout = io.StringIO()\nhalf(1)", Verdict.FAILED),
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
