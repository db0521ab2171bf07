"""Small exercises with worked responses, made by seed: multiple choice, programs, instructions that rules can check."""

import json
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Exercise: TypeAlias = tuple[str, str, dict[str, Any], str]  # prompt, IFEval's name, its arguments, a response

_CALCULATIONS: tuple[tuple[str, str, Callable[[int, int], int]], ...] = (  # in words, in Python, and what it gives
    ("n plus {}", "n + {}", operator.add),
    ("n minus {}", "n - {}", operator.sub),
    ("n times {}", "n * {}", operator.mul),
    ("n modulo {}", "n % {}", operator.mod),
    ("the larger of n and {}", "max(n, {})", max),
    ("the smaller of n and {}", "min(n, {})", min),
)
_READ = (-1000, -7, 0, 12, 345)  # numbers that a program is tried on

_UNITS = (("km", "m", 1000), ("m", "cm", 100), ("cm", "mm", 10), ("kg", "g", 1000), ("h", "min", 60), ("min", "s", 60))
_WORDS = ("apple", "bread", "cloud", "drum", "eagle", "flute", "grass", "house", "island", "juice", "kite", "lemon")
_LETTERS = "ABC"


def choices(size: int, seed: int) -> Iterator[dict[str, str]]:
    """``size`` rows: which of three quantities is another one in a smaller unit. For the verifier `choice`."""
    generator = random.Random(seed)
    for _ in range(size):
        large, small, factor = generator.choice(_UNITS)
        number = generator.randint(1, 99)
        right, wrong = number * factor, [number * factor * 10, number + factor]
        options = generator.sample([right, *wrong], 3)
        listed = " ".join(f"({letter}) {option}" for letter, option in zip(_LETTERS, options, strict=True))
        letter = _LETTERS[options.index(right)]
        yield {
            "prompt": f"{number} {large} in {small}? {listed}",
            "answer": letter,
            "domain": "science",
            "verifier": "choice",
            "demonstration": rf"{number}*{factor}={right} \boxed{{{letter}}}",
        }


def programs(size: int, seed: int) -> Iterator[dict[str, str]]:
    """``size`` rows, each a calculation with a number that the program reads. For the verifier `code`."""
    generator = random.Random(seed)
    for _ in range(size):
        words, expression, calculate = generator.choice(_CALCULATIONS)
        number = generator.randint(1, 999)
        tests = [{"input": f"{n}\n", "output": f"{calculate(n, number)}\n"} for n in _READ]
        yield {
            "prompt": f"A Python program: read n, print {words.format(number)}.",
            "answer": json.dumps({"tests": tests}),
            "domain": "code",
            "verifier": "code",
            "demonstration": f"```\nn = int(input())\nprint({expression.format(number)})\n```",
        }


def instructions(size: int, seed: int) -> Iterator[dict[str, str]]:
    """``size`` rows, each with one of IFEval's instructions. For the verifier `ifeval`."""
    generator = random.Random(seed)
    for _ in range(size):
        prompt, name, arguments, response = generator.choice(_EXERCISES)(generator)
        yield {
            "prompt": prompt,
            "answer": json.dumps({"instruction_id_list": [name], "kwargs": [arguments]}),
            "domain": "instructions",
            "verifier": "ifeval",
            "demonstration": response,
        }


def _existence(generator: random.Random) -> Exercise:
    words = generator.sample(_WORDS, 2)
    return f"Use the words {' and '.join(words)}.", "keywords:existence", {"keywords": words}, " ".join(words)


def _bullets(generator: random.Random) -> Exercise:
    words = generator.sample(_WORDS, generator.randint(2, 4))
    arguments = {"num_bullets": len(words)}
    name = "detectable_format:number_bullet_lists"
    return f"List as bullets: {', '.join(words)}.", name, arguments, "\n".join(f"* {word}" for word in words)


def _quotation(generator: random.Random) -> Exercise:
    word = generator.choice(_WORDS)
    return f"Say {word} in double quotation marks.", "startend:quotation", {}, f'"{word}"'


def _ending(generator: random.Random) -> Exercise:
    first, last = generator.sample(_WORDS, 2)
    return f"Say {first} and end with {last}.", "startend:end_checker", {"end_phrase": last}, f"{first} {last}"


def _title(generator: random.Random) -> Exercise:
    word = generator.choice(_WORDS)
    return f"Write the title {word} in double angular brackets.", "detectable_format:title", {}, f"<<{word}>>"


_EXERCISES: tuple[Callable[[random.Random], Exercise], ...] = (_existence, _bullets, _quotation, _ending, _title)
