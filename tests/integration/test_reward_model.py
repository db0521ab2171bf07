"""The reward model in actors of its own, on a real Ray, beside reward workers that judge by rule."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import ray

from ring_ray.actors.cluster import ray_session
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.reward import Reservoir, RewardPool, RewardRouter, RewardWorker
from ring_ray.config import ClusterConfig, LengthConfig, ModelConfig, RewardConfig, RewardModelConfig, RunConfig
from ring_ray.data.tokenizer import load_tokenizer
from ring_ray.rewards.open_ended.reward_model import Opinion, opinion
from ring_ray.roles import RolloutRef
from ring_ray.types import Rollout, Verdict
from tests.conftest import Run
from tests.integration.fleets import Faults, make_fleet
from tests.unit.reward_models import make_tiny_reward_model, scores_of_transformers
from tests.unit.rollouts import rollout, sequence

QUESTION = "1+1"  # of `rollout`
TEXTS = ["\\boxed{2}", "\\boxed{3}, but why?", "It is two. " * 8]


@dataclass
class Setting:
    router: RewardRouter
    models: Fleet[Any]  # that hold the reward model
    config: RewardConfig
    faults: Faults
    policy: str  # whose tokens the responses have


@pytest.fixture(scope="module")
def setting(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    path = make_tiny_reward_model(tmp_path_factory.mktemp("reward model"), pad_is_eos=True)
    model = RewardModelConfig(path=path, dtype="float32", scale=4.0)
    reward = RewardConfig(model=model, length=LengthConfig(free_tokens=20, penalty=0.1))
    faults = Faults()
    with ray_session(ClusterConfig()):
        kept = Reservoir[Any](10, seed=0)
        rules = make_fleet(RewardWorker, "reward worker", tiny, RunConfig(reward=reward), ["math"], log=faults)
        models = make_fleet(RewardWorker, "reward model", tiny, RunConfig(reward=reward), ["reward_model"], log=faults)
        pools = (RewardPool(fleet, call_seconds=120, kept=kept) for fleet in (rules, models))
        yield Setting(RewardRouter(*pools), models, reward, faults, tiny)


def answered(policy: str, index: int, verifier: str) -> RolloutRef:
    """`TEXTS`, in the tokens of the policy's tokenizer."""
    tokenizer = load_tokenizer(policy, ModelConfig())
    sequences = []
    for text in TEXTS:
        ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
        sequences.append(replace(sequence(0, [0] * len(ids)), response_ids=ids))
    group: Rollout = rollout(index, *sequences)
    return RolloutRef(ray.put(replace(group, prompt=replace(group.prompt, verifier=verifier))))


def expected_scores(config: RewardConfig) -> list[float]:
    """By transformers, and by hand: a token of this tokenizer is a byte."""
    assert config.model.path is not None
    found = [opinion(raw, config.model) for raw in scores_of_transformers(config.model.path, QUESTION, TEXTS)]
    scores = [one.score for one in found if isinstance(one, Opinion)]
    assert config.length.free_tokens is not None
    costs = [0.1 * max(0, len(text) - 20) / 20 for text in TEXTS]
    return [max(0.0, score - cost) for score, cost in zip(scores, costs, strict=True)]


def test_each_group_goes_to_whom_its_prompt_names(setting: Setting, run: Run) -> None:
    by_model = run(setting.router.score(answered(setting.policy, 0, "reward_model")))
    by_rule = run(setting.router.score(answered(setting.policy, 1, "math")))
    assert [reward.score for reward in by_model] == pytest.approx(expected_scores(setting.config), abs=1e-4)
    assert all("the reward model says" in reward.reason for reward in by_model)
    assert [reward.verdict for reward in by_rule] == [Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE]
    samples = run(setting.router.samples())
    assert {(sample.prompt_index, "the reward model" in sample.reward.reason) for sample in samples} == {
        (0, True),
        (1, False),
    }


def test_a_reward_model_that_dies_is_replaced_and_its_group_scored(setting: Setting, run: Run) -> None:
    place = ray.get(setting.models[0].whereabouts.remote())
    os.kill(place.pid, signal.SIGKILL)
    rewards = run(setting.router.score(answered(setting.policy, 2, "reward_model")))
    assert [reward.score for reward in rewards] == pytest.approx(expected_scores(setting.config), abs=1e-4)
    assert [fault.kind for fault in setting.faults.faults] == ["reward"]
    assert "reward model 0 died" in setting.faults.faults[0].what
