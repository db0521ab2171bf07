"""Programs that calculate, in every way in which the sandbox is asked, with values that Python itself knows."""

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ring_ray.rewards.sandbox.problem import CallTest, Problem, StreamTest
from tests.verifiers import cases

INPUTS = [(1, 2, 3), (-4, 5, 0), (7, -7, 2), (9, 8, -6)]
NAMES = ("a", "b", "c")
FUNCTIONS = {"max": max, "min": min, "abs": abs}
LANGUAGES = {
    "python": "a, b, c = map(int, input().split())\nprint({})\n",
    "cpp": "#include <algorithm>\n#include <iostream>\nusing namespace std;\n"
    "int main() {{ long long a, b, c; cin >> a >> b >> c; cout << {} << endl; }}\n",
    "java": "public class Main {{ public static void main(String[] words) {{\n"
    "var in = new java.util.Scanner(System.in);\nlong a = in.nextLong(), b = in.nextLong(), c = in.nextLong();\n"
    "System.out.println({}); }} }}\n",
}
CALLED = {  # how each language calls a function on whole numbers
    "python": "{name}({arguments})",
    "cpp": "{name}({arguments})",
    "java": "Math.{name}({arguments})",
}


@dataclass(frozen=True)
class Tree:
    """A name, a number, or an operation on others."""

    head: str
    parts: tuple["Tree", ...] = ()

    def text(self, language: str = "python") -> str:
        parts = [part.text(language) for part in self.parts]
        if self.head in FUNCTIONS:
            return CALLED[language].format(name=self.head, arguments=", ".join(parts))
        if parts:
            return f"({f' {self.head} '.join(parts)})"
        return f"({self.head}LL)" if language == "cpp" and self.head not in NAMES else f"({self.head})"

    def outputs(self) -> list[int]:
        return [value(self.text(), numbers) for numbers in INPUTS]


def value(text: str, numbers: tuple[int, ...]) -> int:
    """The oracle. No text that is made here can name anything but the three numbers and functions."""
    return eval(text, {"__builtins__": {}}, dict(zip(NAMES, numbers, strict=True)) | FUNCTIONS)  # noqa: S307


def grown(chance: random.Random, depth: int) -> Tree:
    if depth == 0:
        return Tree(chance.choice([*NAMES, str(chance.randint(0, 9))]))
    head = chance.choice(["+", "-", "*", *FUNCTIONS])
    return Tree(head, tuple(grown(chance, depth - 1) for _ in range(1 if head == "abs" else 2)))


def changed(chance: random.Random, tree: Tree) -> Tree:
    """Other in one place; its values may be the same all the same."""
    if tree.parts and chance.random() < 0.7:
        place = chance.randrange(len(tree.parts))
        parts = [changed(chance, part) if at == place else part for at, part in enumerate(tree.parts)]
        return Tree(tree.head, tuple(parts))
    if tree.parts:
        return Tree(chance.choice("+-*") if len(tree.parts) == 2 else "abs", tree.parts)
    return Tree(chance.choice([*NAMES, str(chance.randint(0, 9))]))


def problems(tree: Tree) -> dict[str, Problem]:
    """One task, asked in each way there is."""
    pairs = list(zip(INPUTS, tree.outputs(), strict=True))
    streams = [StreamTest(input=" ".join(map(str, numbers)), output=f"{result}\n") for numbers, result in pairs]
    return {
        **{language: Problem(language=language, tests=streams) for language in LANGUAGES},  # type: ignore[arg-type]
        "call": Problem(calls=[CallTest(arguments=[*numbers], returns=result) for numbers, result in pairs], entry="f"),
        "unit tests": Problem(unit_tests="".join(f"assert f{numbers} == {result}\n" for numbers, result in pairs)),
    }


def program(way: str, tree: Tree) -> str:
    if way in LANGUAGES:
        return LANGUAGES[way].format(tree.text(way))
    return f"def f(a, b, c): return {tree.text()}"


def solves(response: str, way: str, expected: list[int]) -> bool:
    """Whether the last block's program gives what is expected in a bare interpreter: no sandbox, no judge."""
    blocks = re.findall(r"^```[^\n`]*\n(.*?)^```", response, re.MULTILINE | re.DOTALL)
    return bool(blocks) and all(gives(blocks[-1], way, *pair) for pair in zip(INPUTS, expected, strict=True))


def gives(source: str, way: str, numbers: tuple[int, ...], result: int) -> bool:
    if way == "call":
        source, given, printed = f"{source}\nprint(f{numbers} == {result})", "", "True"
    else:
        given, printed = " ".join(map(str, numbers)), str(result)
    try:
        command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", source]
        done = subprocess.run(command, input=given.encode(), capture_output=True, timeout=20)
    except (ValueError, subprocess.TimeoutExpired):  # a null byte in the source
        return False
    return done.returncode == 0 and done.stdout.decode().split() == [printed]


def programs(generator: random.Random) -> Iterator[cases.Problem]:
    """In Python, which is judged in milliseconds; half read and print, half are called."""
    while True:
        for way in ("python", "call"):
            yield problem(grown(generator, 3), way)


def problem(tree: Tree, way: str) -> cases.Problem:
    def response(one: Tree) -> str:
        return f"```python\n{program(way, one).rstrip()}\n```"

    return cases.Problem(
        verifier="code",
        answer=msgspec.json.encode(problems(tree)[way]).decode(),
        response=response(tree),
        right=lambda text: solves(text, way, tree.outputs()),
        changed=lambda generator: response(changed(generator, tree)),
    )
