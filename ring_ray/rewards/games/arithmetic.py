"""Countdown and 24: an expression that uses every number once and has a given value."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.games.game import SOLVED, Finding, Game, UnparsableError, unsolved

# The bounds keep values small: without powers one has no more digits than its expression.
_EXPRESSION = re.compile(r"[0-9+\-*/() ]{1,300}")
_SIGNS = str.maketrans("×·÷−", "**/-")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    numbers: list[int]
    target: int


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of sums, differences, products and quotients of integers, and the integers in it.

    Nothing is executed: the text is parsed, and its tree may hold numbers and the four operators only. Raises
    `UnparsableError` for anything else, and ZeroDivisionError.
    """
    text = " ".join(expression.translate(_SIGNS).split())
    if not _EXPRESSION.fullmatch(text):
        raise UnparsableError(f"{shorten(expression)} is no expression of at most 300 characters with + - * / and ()")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise UnparsableError(f"{shorten(expression)} is no expression: {type(error).__name__}") from error
    numbers: list[int] = []
    return _value(tree.body, numbers), numbers


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand, numbers))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left, numbers), _value(right, numbers))
    raise UnparsableError("only numbers, + - * / and parentheses may be used")


def judge(puzzle: Arithmetic, answer: str) -> Finding:
    try:
        value, numbers = evaluate(answer)
    except ZeroDivisionError:
        return unsolved("divides by zero")
    if Counter(numbers) != Counter(puzzle.numbers):
        return unsolved(f"uses {numbers[:20]}, not each of {puzzle.numbers} once")
    return SOLVED if value == puzzle.target else unsolved(f"is {shorten(str(value))}, not {puzzle.target}")


INSTRUCTION = "Write only the expression, with every number used exactly once."

COUNTDOWN = Game(
    dataset="countdown",
    levels={
        "easy": {"min_numbers": 3, "max_numbers": 3, "max_value": 20, "min_target": 10, "max_target": 99},
        "medium": {"min_numbers": 4, "max_numbers": 4, "max_value": 50, "min_target": 10, "max_target": 299},
        "hard": {"min_numbers": 5, "max_numbers": 6, "max_value": 100, "min_target": 100, "max_target": 999},
    },
    instruction=INSTRUCTION,
    record=Arithmetic,
    read=lambda entry: Arithmetic(list(entry["metadata"]["numbers"]), int(entry["metadata"]["target"])),
    judge=judge,
)

PUZZLE_24 = Game(
    dataset="puzzle24",
    levels={"easy": {"max_value": 6}, "medium": {"max_value": 8}, "hard": {"max_value": 10}},
    instruction=INSTRUCTION,
    record=Arithmetic,
    read=lambda entry: Arithmetic(list(entry["metadata"]["numbers"]), 24),
    judge=judge,
)
