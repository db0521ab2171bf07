"""Generated programs through the real sandbox: right ones are accepted, changed ones refused, garbage scores nothing.

The oracle is Python's own arithmetic in this process; the sandbox sees programs as text, in three languages.
"""

import random
from collections.abc import Iterator

import pytest

from ring_ray.config import RewardConfig, SandboxConfig
from ring_ray.data import exercises
from ring_ray.rewards.code import CodeVerifier
from ring_ray.rewards.sandbox.judge import Judge
from ring_ray.rewards.sandbox.pool import Sandbox
from ring_ray.rewards.sandbox.problem import Problem
from ring_ray.types import Reward, Verdict
from tests.conftest import Run
from tests.unit.test_rewards import prompt, responses
from tests.verifiers import cases
from tests.verifiers.fuzz import fuzz
from tests.verifiers.programs import changed, grown, problems, program

CONFIG = SandboxConfig(workers=2, wall_seconds=30)
CASES = {"python": 40, "cpp": 6, "java": 2}


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


def test_no_mutant_scores_more_than_a_bare_interpreter_gives() -> None:
    found = fuzz("code", 200, random.Random(7))
    assert not found.undue
    assert not found.broken
    assert found.verdicts.keys() == {Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE}


def test_the_worked_programs_of_the_mixture_are_right() -> None:
    for row in exercises.programs(20, 0):
        assert cases.judge("code", row["answer"], row["demonstration"]).score == 1.0
        assert cases.judge("code", row["answer"], row["demonstration"].replace("n", "2 * n")).score == 0.0


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
