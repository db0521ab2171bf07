"""Integers, mathematics, science and multiple choice: problems whose answers Python's own arithmetic knows."""

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, TypeAlias

from tests.verifiers.cases import Problem

Value: TypeAlias = Any  # Fraction, or a tuple that begins with its kind

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SPACES = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|(?<!\\)\\[,;:!> ]|[\s$~]")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}(?:\{+([^{}]*)\}+|([0-9]))")
UNITS = {  # (what it measures, how many of the first of its kind)
    **{"m": ("length", 1), "cm": ("length", Fraction(1, 100)), "mm": ("length", Fraction(1, 1000))},
    **{"km": ("length", 1000), "dm": ("length", Fraction(1, 10)), "g": ("mass", 1), "kg": ("mass", 1000)},
    **{"mg": ("mass", Fraction(1, 1000)), "s": ("time", 1), "ms": ("time", Fraction(1, 1000)), "min": ("time", 60)},
    **{"h": ("time", 3600), "J": ("energy", 1), "kJ": ("energy", 1000), "MJ": ("energy", 10**6)},
}


def boxed(text: str) -> str | None:
    """The last one, brace by brace."""
    _, opening, rest = text.rpartition(r"\boxed{")
    depth, escaped = 1, False
    for place, character in enumerate(rest if opening else ""):
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        escaped = character == "\\" and not escaped
        if depth == 0:
            return rest[:place]
    return None


def value(latex: str) -> Value | None:
    """What small LaTeX means: numbers, percentages, sets, pairs, intervals, matrices.

    Backslashes may be doubled, as in JSON; a set needs no braces; an index of nothing and a last break are ignored.
    """
    if "begin" not in latex:
        latex = re.sub(r"\\{2,}(?=[A-Za-z{}])", r"\\", latex)
    text = _SPACES.sub("", latex).removesuffix(".").lstrip("_").replace(r"\{", "<").replace(r"\}", ">").rstrip("\\")
    if matrix := re.fullmatch(r"\\begin\{([pb]matrix)\}(.*)\\end\{\1\}", text):
        rows = [[number(cell) for cell in row.split("&")] for row in matrix[2].split(r"\\")]
        return None if any(None in row for row in rows) else ("matrix", *map(tuple, rows))
    if (one := number(text)) is not None:
        return one
    if "," in text and text[0] not in "([":
        parts = [number(part) for part in text.strip("<>").split(",")]
        return None if None in parts else ("set", frozenset(parts))
    if text[:1] in "([" and text[-1:] in ")]" and text.count(",") == 1:
        parts = [number(part) for part in text[1:-1].split(",")]
        return None if None in parts else (text[:1] + text[-1:], *parts)
    return None


def number(text: str) -> Fraction | None:
    """Sums, products and quotients of decimals."""
    if not re.fullmatch(r"(?:\\[dt]?frac|\\cdot|\\times|[0-9.,+*/(){}%\\-])+", text):
        return None
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    while (simpler := _FRACTION.sub(r"((\1)/(\2\3))", text)) != text:
        text = simpler
    text = re.sub(r"([0-9.]+|\(\([^()]*\)/\([^()]*\)\))\\?%", r"(\1/100)", text)
    text = re.sub(r"\\(?:cdot|times)", "*", text).replace("{", "(").replace("}", ")")
    try:
        return _evaluated(ast.parse(re.sub(r"\b0+(?=[0-9])", "", text), mode="eval").body)
    except (SyntaxError, ZeroDivisionError, TypeError, ValueError, RecursionError):
        return None


def _evaluated(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(given) | float(given)):
            return Fraction(str(given))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluated(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluated(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_evaluated(left), _evaluated(right))
    raise ValueError(ast.dump(node))


def same(expected: Value, response: str) -> bool:
    answer = boxed(response)
    return answer is not None and expected is not None and value(answer) == expected


def integers(generator: random.Random) -> Iterator[Problem]:
    while True:
        given = generator.randint(-(10**6), 10**6)
        yield Problem(
            verifier="integer",
            answer=str(given),
            response=rf"so \boxed{{{given:+d}}}"
            if generator.random() < 0.5
            else rf"\boxed{{1}}, no: \boxed{{ {given}}}",
            right=partial(_same_integer, given),
            changed=lambda other, given=given: rf"\boxed{{{given + other.choice([-10, -1, 0, 1, 1000])}}}",
        )


def _same_integer(expected: int, response: str) -> bool:
    answer = (boxed(response) or "").strip()
    return bool(re.fullmatch(r"[+-]?[0-9]+", answer)) and int(answer) == expected


def mathematics(generator: random.Random) -> Iterator[Problem]:
    """Numbers, sets, intervals and matrices, each in several forms."""
    while True:
        parts = [Fraction(generator.randint(-50, 50), generator.randint(1, 20)) for _ in range(4)]
        write = generator.choice([_scalar, _set, _interval, _matrix])
        answer = write(parts, random.Random(0))
        yield Problem(
            verifier="math",
            answer=answer,
            response=rf"The answer is \boxed{{{write(parts, generator)}}}.",
            right=partial(same, value(answer)),
            changed=partial(_with_another_part, parts, write),
        )


def _with_another_part(parts: list[Fraction], write: Any, generator: random.Random) -> str:
    others = [*parts]
    others[generator.randrange(4)] += generator.choice([0, 1, -1, Fraction(1, 2)])
    return rf"\boxed{{{write(others, generator)}}}"


def _fraction(one: Fraction, generator: random.Random) -> str:
    forms = [
        rf"\frac{{{one.numerator}}}{{{one.denominator}}}",
        rf"\dfrac{{{one.numerator * 3}}}{{{one.denominator * 3}}}",
        f"{one.numerator}/{one.denominator}",
        rf"\frac{{{one.numerator * 100}}}{{{one.denominator}}}\%",
    ]
    return generator.choice(forms)


def _plain(one: Fraction) -> str:
    return rf"\frac{{{one.numerator}}}{{{one.denominator}}}"


def _scalar(parts: list[Fraction], generator: random.Random) -> str:
    return _fraction(parts[0], generator)


def _set(parts: list[Fraction], generator: random.Random) -> str:
    shuffled = ", ".join(_plain(one) for one in generator.sample(parts, 4))
    return rf"\{{{shuffled}\}}"


def _interval(parts: list[Fraction], generator: random.Random) -> str:
    low, high = sorted(parts[:2])
    left, right = ("[" if parts[2] > 0 else "("), (")" if parts[3] > 0 else "]")
    return (
        rf"\left{left}{low}, {high + 1}\right{right}" if generator.random() < 0.5 else f"{left}{low},{high + 1}{right}"
    )


def _matrix(parts: list[Fraction], generator: random.Random) -> str:
    kind = generator.choice(["pmatrix", "bmatrix"])
    a, b, c, d = map(_plain, parts)
    return rf"\begin{{{kind}}}{a} & {b} \\ {c} & {d}\end{{{kind}}}"


def science(generator: random.Random) -> Iterator[Problem]:
    while True:
        expected = Fraction(generator.randint(1, 10**6), 10 ** generator.randint(1, 4)) * generator.choice([1, -1])
        unit = generator.choice([*UNITS])
        yield Problem(
            verifier="science",
            answer=f"{float(expected)} {unit}",
            response=_quantity(expected, unit, Fraction(1), generator),
            right=partial(_within_tolerance, expected, unit),
            changed=lambda other, expected=expected, unit=unit: _quantity(
                expected, unit, Fraction(other.choice([90, 98, 100, 102, 110, -100, 1000]), 100), other
            ),
        )


def _quantity(expected: Fraction, unit: str, factor: Fraction, generator: random.Random) -> str:
    kind, scale = UNITS[unit]
    other = generator.choice([name for name, (measures, _) in UNITS.items() if measures == kind])
    given = f"{float(expected * factor * scale / UNITS[other][1]):.6e}"
    return rf"\boxed{{{given} \text{{ {other}}}}}" if generator.random() < 0.5 else rf"\boxed{{{given} {other}}}"


def _within_tolerance(expected: Fraction, unit: str, response: str) -> bool:
    """With units where both have one that is known, else without."""
    answer = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", boxed(response) or "")
    given = re.fullmatch(r"([-+.,0-9\s]+(?:[eE][-+0-9\s]+)?)(.*)", answer.strip(" $.\n"), re.DOTALL)
    if given is None:
        return False
    try:
        quantity = Fraction(re.sub(r"\s|(?<=[0-9]),(?=[0-9]{3})", "", given[1]))
    except (ValueError, ZeroDivisionError):
        return False
    kind, scale = UNITS[unit]
    measures, given_scale = UNITS.get(given[2].strip(" ()"), (kind, scale))
    return measures == kind and abs(quantity * given_scale - expected * scale) <= abs(expected) * scale / 99


def choices(generator: random.Random) -> Iterator[Problem]:
    forms = [
        r"\boxed{%s}",
        r"\boxed{\text{%s}}",
        r"\boxed{(%s)}",
        "The answer is %s.",
        "Answer: **%s**",
        r"\boxed{%s. It}",
    ]
    while True:
        letter = generator.choice("ABCDEFGHIJ")
        yield Problem(
            verifier="choice",
            answer=letter,
            response=generator.choice(forms) % letter,
            right=partial(_same_letter, letter),
            changed=lambda other: other.choice(forms) % other.choice("ABCDEFGHIJ"),
        )


def _same_letter(expected: str, response: str) -> bool:
    """By words: the first one of the box, or the first after the last "answer" that a letter follows."""
    answer = boxed(response)
    if answer is not None:
        words = re.findall(r"\w+", re.sub(r"\\[A-Za-z]+", " ", answer))
        return words[:1] == [expected]
    said = [re.findall(r"\w+", part) for part in re.split(r"\banswer", response, flags=re.IGNORECASE)[1:]]
    firsts = [(words[1:] if words[:1] and words[0].lower() == "is" else words)[:1] for words in said]
    letters = [first[0] for first in firsts if first and re.fullmatch("[A-Z]", first[0])]
    return letters[-1:] == [expected]
