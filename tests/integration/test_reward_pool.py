"""The reward workers on a real Ray: rewards, and the responses that they keep for people."""

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import ray

from ring_ray.actors.cluster import ray_session
from ring_ray.actors.reward import Reservoir, RewardPool, RewardWorker
from ring_ray.config import ClusterConfig, ModelConfig, RunConfig
from ring_ray.data.tokenizer import Tokenizer, load_tokenizer
from ring_ray.roles import RolloutRef
from ring_ray.types import Rollout, Verdict
from tests.conftest import Run
from tests.integration.fleets import make_fleet
from tests.unit.rollouts import rollout, sequence


@pytest.fixture(scope="module")
def pool(tiny: str) -> Iterator[RewardPool]:
    with ray_session(ClusterConfig()):
        fleet = make_fleet(RewardWorker, "reward worker", tiny, RunConfig(), ["code", "math"], size=2)
        yield RewardPool(fleet, call_seconds=60, kept=Reservoir(3, seed=0))


def answered(tokenizer: Tokenizer, index: int, *texts: str, **prompt: str) -> RolloutRef:
    """Responses in the tokens of ``tokenizer``; ``prompt`` is what the prompt has else than others."""
    sequences = []
    for text in texts:
        ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
        sequences.append(replace(sequence(0, [index] * len(ids)), response_ids=ids))
    group: Rollout = rollout(index, *sequences)
    return RolloutRef(ray.put(replace(group, prompt=replace(group.prompt, **prompt))))


def test_samples_are_of_what_was_scored_since_the_last_call(pool: RewardPool, tiny: str, run: Run) -> None:
    tokenizer = load_tokenizer(tiny, ModelConfig())
    texts = ["\\boxed{2}", "\\boxed{3}"]
    for first in (0, 10):
        for index in range(first, first + 10):
            right, wrong = run(pool.score(answered(tokenizer, index, *texts)))
            assert (right.verdict, wrong.verdict) == (Verdict.CORRECT, Verdict.WRONG)
        samples = run(pool.samples())
        assert len({sample.prompt_index for sample in samples}) == 3
        for sample in samples:
            assert first <= sample.prompt_index < first + 10
            assert sample.first_version == sample.last_version == sample.prompt_index
            assert sample.reward.verdict is (Verdict.CORRECT if sample.response == texts[0] else Verdict.WRONG)
    assert run(pool.samples()) == ()


def test_code_is_judged_in_the_sandbox_of_a_worker(pool: RewardPool, tiny: str, run: Run) -> None:
    problem = json.dumps({"tests": [{"input": "1 2", "output": "3"}, {"input": "4 5", "output": "9"}]})
    programs = ["print(sum(map(int, input().split())))", "print(3)", "while True: pass", "print("]
    texts = [f"```python\n{program}\n```" for program in programs]
    answer = answered(load_tokenizer(tiny, ModelConfig()), 50, *texts, "no code", verifier="code", answer=problem)
    rewards = run(pool.score(answer))
    wrong = [Verdict.WRONG] * 3
    assert [reward.verdict for reward in rewards] == [Verdict.CORRECT, *wrong, Verdict.UNPARSABLE], rewards
    assert rewards[1].reason == "test 2 of 2: prints '3\\n' instead of '9'"
