"""Generated programs through the real sandbox: right ones are accepted, changed ones refused, garbage scores nothing.

The oracle is Python's own arithmetic in this process; the sandbox sees programs as text, in three languages.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ring_ray.config import RewardConfig, SandboxConfig
from ring_ray.rewards.code import CodeVerifier
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import CallTest, Problem, StreamTest
from ring_ray.types import Reward, Verdict
from tests.conftest import Run
from tests.unit.test_rewards import prompt, responses

CONFIG = SandboxConfig(workers=2, wall_seconds=30)
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
CASES = {"python": 40, "cpp": 6, "java": 2}


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


@pytest.fixture(scope="module")
def judge(run: Run) -> Iterator[Judge]:
    sandbox = Sandbox(CONFIG)
    run(sandbox.__aenter__())
    yield Judge(sandbox, CONFIG)
    run(sandbox.__aexit__(None, None, None))


@pytest.mark.parametrize("way", ["python", "cpp", "java", "call", "unit tests"])
def test_the_verdict_is_the_oracles(way: str, judge: Judge, run: Run) -> None:
    chance = random.Random(way)
    submissions, right = list[tuple[Problem, str]](), list[bool]()
    for _ in range(CASES.get(way, CASES["python"])):
        tree = grown(chance, 3)
        other = changed(chance, tree)
        for given in (tree, other):
            submissions.append((problems(tree)[way], program(way, given)))
            right.append(given.outputs() == tree.outputs())
    rewards: list[Reward] = run(judge.judge_all(submissions))
    verdicts = [Verdict.CORRECT if one else Verdict.WRONG for one in right]
    assert [reward.verdict for reward in rewards] == verdicts, [reward.reason for reward in rewards]
    assert [reward.score for reward in rewards] == [float(one) for one in right]
    assert len(right) / 2 <= sum(right) < len(right)


def mutated(chance: random.Random, text: str) -> str:
    place = chance.randrange(len(text))
    return text[:place] + chance.choice(["", *"abc+-%()019 ,"]) + text[place + chance.randint(0, 1) :]


def agrees(text: str, tree: Tree) -> bool:
    """Whether the oracle takes a changed expression for right."""
    try:
        return [value(text, numbers) for numbers in INPUTS] == tree.outputs()
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        return False


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of mutants
def test_no_mutant_scores_more_than_the_oracle_gives(judge: Judge, run: Run) -> None:
    chance = random.Random(7)
    submissions, right = list[tuple[Problem, str]](), list[bool]()
    for _ in range(150):
        tree = grown(chance, 2)
        text = mutated(chance, tree.text())
        submissions.append((problems(tree)["python"], LANGUAGES["python"].format(text)))
        right.append(agrees(text, tree))
    rewards: list[Reward] = run(judge.judge_all(submissions))
    assert [reward.score for reward in rewards] == [float(one) for one in right]
    assert 0 < sum(right) < len(right)


def test_garbage_scores_nothing() -> None:
    chance = random.Random(8)
    answer = '{"tests": [{"input": "1 2", "output": "3"}]}'
    texts = [chance.randbytes(chance.randint(0, 300)).decode("utf-8", "replace") for _ in range(100)]
    texts += ["".join(chance.choices("`python\n printf()3[]{}=+:'\"\\\0\ud800", k=60)) for _ in range(100)]
    texts = [text if chance.random() < 0.2 else f"```python\n{text}\n```" for text in texts]
    verifier = CodeVerifier(RewardConfig(sandbox=CONFIG))
    try:
        rewards = verifier.verify_group(prompt(answer), responses(*texts))
    finally:
        verifier.close()
    assert {reward.score for reward in rewards} == {0.0}
    assert {reward.verdict for reward in rewards} == {Verdict.WRONG, Verdict.UNPARSABLE}
