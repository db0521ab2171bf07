"""What a reward model and a judge have in common as verifiers: scores, lengths, failures, keys."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import ConfigError, EndpointConfig, JudgeConfig, LengthConfig, RewardConfig, RewardModelConfig
from ring_ray.rewards.base import GroupVerifier, Response, failed
from ring_ray.rewards.open_ended.endpoint import UnreadableAnswerError
from ring_ray.rewards.open_ended.length import length_controlled
from ring_ray.rewards.open_ended.reward_model import opinion, read_raw_score
from ring_ray.rewards.open_ended.verifier import OpenEndedVerifier, Opinion
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Prompt, Reward, Verdict
from tests.unit.http_server import Body, http_server
from tests.unit.test_rewards import responses

LENGTHS = st.builds(LengthConfig, free_tokens=st.none() | st.integers(1, 5000), penalty=st.floats(0, 3))
SCORES = st.floats(0, 1)


def prompt(verifier: str, answer: str = "a reference") -> Prompt:
    ids = np.zeros(1, np.int32)
    return Prompt(index=0, id="d.jsonl:7", domain="chat", text="Why?", token_ids=ids, verifier=verifier, answer=answer)


def length_controlled_by_hand(score: float, tokens: int, config: LengthConfig) -> float:
    """Token by token, in float64."""
    left = np.float64(score)
    for token in range(1, tokens + 1):
        if config.free_tokens is not None and token > config.free_tokens:
            left -= np.float64(config.penalty) / np.float64(config.free_tokens)
    return float(max(left, 0.0))


@given(SCORES, st.integers(0, 12_000), LENGTHS)
def test_length_control_against_a_loop(score: float, tokens: int, config: LengthConfig) -> None:
    expected = length_controlled_by_hand(score, tokens, config)
    assert length_controlled(score, tokens, config) == pytest.approx(expected, abs=1e-9)


@given(SCORES, SCORES, st.integers(0, 12_000), st.integers(0, 12_000), LENGTHS)
def test_length_only_ever_costs(first: float, second: float, short: int, long: int, config: LengthConfig) -> None:
    first, second = sorted((first, second))
    short, long = sorted((short, long))
    assert 0 <= length_controlled(first, long, config) <= length_controlled(first, short, config) <= first
    assert length_controlled(first, short, config) <= length_controlled(second, short, config)
    assert length_controlled(first, config.free_tokens or long, config) == first


def test_length_control_undoes_a_bias_that_is_known() -> None:
    """Scores that are quality and 0.02 for each hundred tokens beyond a hundred: what is left is the quality."""
    random = np.random.default_rng(0)
    quality, tokens = random.uniform(0.1, 0.5, 1000), random.integers(1, 1000, 1000)
    biased = quality + 0.02 * np.maximum(tokens - 100, 0) / 100
    config = LengthConfig(free_tokens=100, penalty=0.02)
    freed = [length_controlled(score, length, config) for score, length in zip(biased, tokens, strict=True)]
    assert np.corrcoef(biased, tokens)[0, 1] > 0.3
    np.testing.assert_allclose(freed, quality, atol=1e-12)


@given(st.floats(-1e6, 1e6), st.floats(-10, 10), st.floats(0.01, 100))
def test_raw_scores_become_rewards_by_a_sigmoid(raw: float, center: float, scale: float) -> None:
    found = opinion(raw, RewardModelConfig(center=center, scale=scale))
    assert isinstance(found, Opinion)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-(np.float64(raw) - center) / scale))
    assert found.score == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("raw", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_a_failure(raw: float) -> None:
    found = opinion(raw, RewardModelConfig())
    assert isinstance(found, Reward)
    assert found.verdict is Verdict.FAILED


@pytest.mark.parametrize("name", ["probs", "data"])
def test_the_answer_of_a_classifier_with_one_label(name: str) -> None:
    assert read_raw_score({"model": "m", "data": [{"index": 0, name: [-1.5]}]}) == -1.5


@pytest.mark.parametrize(
    "answer",
    [
        "error",
        {"data": []},
        {"data": [{"probs": [1.0]}, {"probs": [2.0]}]},
        {"data": [{"probs": [0.5, 0.5]}]},
        {"data": [{"data": [[1.0], [2.0]]}]},
        {"data": [{"data": "AAAA"}]},
        {"data": [{"probs": [True]}]},
        {"data": [{}]},
    ],
)
def test_any_other_answer_is_unreadable(answer: object) -> None:
    with pytest.raises(UnreadableAnswerError, match="not the one score of a classifier with one label"):
        read_raw_score(answer)


def test_a_score_that_is_no_number_is_not_remembered() -> None:
    async def recovers(body: Body, before: int) -> web.StreamResponse:
        text = '{"data": [{"probs": [%s]}]}' % ("1" if before else "NaN")
        return web.Response(text=text, content_type="application/json")

    with http_server(recovers) as server:
        verifiers = Verifiers(RewardConfig(model=RewardModelConfig(url=server.url, model="tiny")))
        (first,), (second,) = (verifiers.judge(prompt("reward_model"), responses("a")) for _ in range(2))
    assert first.verdict is Verdict.FAILED
    assert "the reward model's score is nan" in first.reason
    assert second.verdict is Verdict.CORRECT


class Table(OpenEndedVerifier):
    """Thinks of a text what a table says."""

    def __init__(self, length: LengthConfig, **opinions: Opinion | Reward) -> None:
        super().__init__(JudgeConfig(timeout_seconds=7), length)
        self._opinions = opinions
        self.assessed: list[list[str]] = []

    def assess(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[Opinion | Reward]:
        self.assessed.append(list(texts))
        return [self._opinions[text] for text in texts]


def test_scores_verdicts_and_reasons() -> None:
    length = LengthConfig(free_tokens=10, penalty=0.5)
    table = Table(length, good=Opinion(0.9, "clear"), poor=Opinion(0.3, "vague"), lost=failed("the server is gone"))
    asked = [Response("good", 10), Response("poor", 5), Response("lost", 5), Response("good", 20), Response("poor", 90)]
    good, poor, lost, long, longer = table.verify_group(prompt("judge"), asked)
    assert (good.score, good.verdict, good.reason) == (0.9, Verdict.CORRECT, "clear")
    assert (poor.score, poor.verdict, poor.reason) == (0.3, Verdict.WRONG, "vague")
    assert (lost.verdict, lost.reason) == (Verdict.FAILED, "the server is gone")
    assert long.score == pytest.approx(0.4)
    assert long.verdict is Verdict.WRONG
    assert long.reason == "clear; 0.4 after what 20 tokens cost"
    assert longer.score == 0
    assert table.assessed == [["good", "poor", "lost"]]
    assert good.seconds == longer.seconds > 0
    assert table.seconds(64) == 7


def test_the_registry_judges_groups_and_says_how_long_it_took() -> None:
    verifiers = Verifiers(RewardConfig())
    both = verifiers.judge(prompt("integer", "3"), responses(r"\boxed{3}", r"\boxed{4}"))
    assert [reward.verdict for reward in both] == [Verdict.CORRECT, Verdict.WRONG]
    assert all(reward.seconds > 0 for reward in both)


@pytest.mark.parametrize(("name", "key"), [("judge", r"reward\.judge\.url"), ("reward_model", r"reward\.model\.url")])
def test_a_verifier_that_the_config_does_not_provide_for_is_refused_by_its_key(name: str, key: str) -> None:
    verifiers = Verifiers(RewardConfig())
    verifiers.check([prompt("math"), prompt("ifeval")])
    with pytest.raises(ConfigError, match=key):
        verifiers.check([prompt("math"), prompt(name)])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: JudgeConfig(url="localhost:8000", model="m"), "reward.judge.url"),
        (lambda: JudgeConfig(url="http://", model="m"), "reward.judge.url"),
        (lambda: JudgeConfig(url="http://[::1", model="m"), "reward.judge.url"),
        (lambda: JudgeConfig(url="http://127.0.0.1:99999", model="m"), "reward.judge.url"),
        (lambda: JudgeConfig(url="http://127.0.0.1"), "reward.judge.model"),
        (lambda: JudgeConfig(tries=0), "reward.judge.tries"),
        (lambda: JudgeConfig(samples=2), "reward.judge.samples"),
        (lambda: JudgeConfig(best=0), "reward.judge.best"),
        (lambda: JudgeConfig(best=101), "reward.judge.best"),
        (lambda: JudgeConfig(temperature=-1), "reward.judge.temperature"),
        (lambda: RewardModelConfig(timeout_seconds=0), "reward.model.timeout_seconds"),
        (lambda: RewardModelConfig(cached=0), "reward.model.cached"),
        (lambda: RewardModelConfig(url="http://127.0.0.1", model="m", path="dir"), "reward.model.path"),
        (lambda: RewardModelConfig(route="/score"), "reward.model.route"),
        (lambda: RewardModelConfig(scale=0), "reward.model.scale"),
        (lambda: RewardModelConfig(dtype="int8"), "reward.model.dtype"),
        (lambda: LengthConfig(free_tokens=0), "reward.length.free_tokens"),
        (lambda: LengthConfig(penalty=-1), "reward.length.penalty"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}="):
        make()


@pytest.mark.parametrize("config", [JudgeConfig, RewardModelConfig])
def test_the_config_holds_no_key_and_the_refusal_does_not_tell_it(config: type[EndpointConfig]) -> None:
    with pytest.raises(ConfigError, match=r"\.url=.*: must hold no password.*\.api_key_variable") as refused:
        config(url="https://me:hunter-2@judge.example/v1", model="m")
    assert "hunter-2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"\.api_key_variable=.*: is no .* name") as refused:
        config(api_key_variable="hunter-2")
    assert "hunter-2" not in str(refused.value)


def test_a_served_reward_model_is_asked_for_its_raw_score() -> None:
    async def by_length(body: Body, before: int) -> web.StreamResponse:
        assert body["use_activation"] is False
        question, answer = body["messages"]
        assert question == {"role": "user", "content": "Why?"}
        assert answer["role"] == "assistant"
        return web.json_response({"data": [{"index": 0, "probs": [len(answer["content"]) - 3.0]}]})

    with http_server(by_length) as server:
        config = RewardConfig(model=RewardModelConfig(url=server.url, model="tiny", center=1.0, scale=2.0))
        verifier = Verifiers(config).get("reward_model")
        assert isinstance(verifier, GroupVerifier)
        rewards = verifier.verify_group(prompt("reward_model"), responses("", "abcd", "abcdefgh"))
    expected = [1 / (1 + np.exp(2.0)), 0.5, 1 / (1 + np.exp(-2.0))]
    np.testing.assert_allclose([reward.score for reward in rewards], expected)
    assert [reward.verdict for reward in rewards] == [Verdict.WRONG, Verdict.CORRECT, Verdict.CORRECT]
    assert rewards[1].reason == "the reward model says 1, which is 0.5"
