"""The reward model and the judge behind real vLLM servers of tiny models, on loopback."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ring_ray.config import JudgeConfig, LengthConfig, RewardConfig, RewardModelConfig
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.rewards.base import Response
from ring_ray.rewards.open_ended.reward_model import ServedRewardModel, opinion
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Verdict
from tests.integration.commands import train
from tests.integration.test_train import SMALL, assert_balanced, read_steps
from tests.integration.vllm_server import Server, vllm_server
from tests.unit.reward_models import make_tiny_reward_model, scores_of_transformers
from tests.unit.test_open_ended import prompt

QUESTION = "Why?"  # of `prompt`
TEXTS = ["", "It is.", "Air scatters blue light more than red. " * 5, "é∑🙂", "no " * 40, *map(str, range(27))]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A pooling server, and the directory of its model."""
    path = make_tiny_reward_model(tmp_path_factory.mktemp("scorer"), pad_is_eos=True)
    with vllm_server(path, "--runner", "pooling", "--max-model-len", "512") as server:
        yield server, path


def served(server: Server, **keys: Any) -> RewardModelConfig:
    return RewardModelConfig(url=server.url, model="tiny", **keys)


@pytest.mark.parametrize("route", ["/classify", "/pooling"])
def test_a_served_reward_model_says_what_transformers_says(scorer: tuple[Server, str], route: str) -> None:
    server, path = scorer
    config = served(server, route=route, center=0.5, scale=3.0)
    found = ServedRewardModel(config, LengthConfig()).assess(prompt("reward_model"), TEXTS)
    raw = scores_of_transformers(path, QUESTION, TEXTS)
    expected = [opinion(score, config) for score in raw]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert max(raw) - min(raw) > 1


def test_rewards_by_the_registry_with_their_length_and_their_failures(scorer: tuple[Server, str]) -> None:
    """One response is too long for the server's model, so that it refuses: the others are judged all the same."""
    server, path = scorer
    config = RewardConfig(model=served(server), length=LengthConfig(free_tokens=10, penalty=0.5))
    texts = ["It is.", "It is.", "a" * 600]
    responses = [Response(texts[0], 5), Response(texts[1], 14), Response(texts[2], 600)]
    short, long, refused = Verifiers(config).judge(prompt("reward_model"), responses)
    expected = opinion(scores_of_transformers(path, QUESTION, texts[:1])[0], config.model).score
    assert short.score == pytest.approx(expected, abs=1e-4)
    assert long.score == pytest.approx(max(0.0, expected - 0.2), abs=1e-4)
    assert (refused.score, refused.verdict) == (0.0, Verdict.FAILED)
    assert "512" in refused.reason
    unknown = RewardConfig(model=replace(config.model, model="other"))
    (reward,) = Verifiers(unknown).judge(prompt("reward_model"), responses[:1])
    assert reward.verdict is Verdict.FAILED
    assert "404" in reward.reason


def test_the_server_listens_on_loopback_only(scorer: tuple[Server, str]) -> None:
    port = int(scorer[0].url.rpartition(":")[2])
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    assert listening == {"127.0.0.1"}


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("judge")
    make_tiny_model(path, seed=0, hidden_size=32)
    with vllm_server(str(path), "--max-model-len", "2048") as server:
        yield server


def judged_by(server: Server, **keys: Any) -> RewardConfig:
    return RewardConfig(judge=JudgeConfig(url=f"{server.url}/v1", model="tiny", **({"max_tokens": 4} | keys)))


def test_a_judge_without_a_key_is_refused_by_the_server(judge: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_API_KEY", "wrong")
    (reward,) = Verifiers(judged_by(judge)).judge(prompt("judge"), [Response("a", 1)])
    assert reward.verdict is Verdict.FAILED
    assert "401" in reward.reason


def test_a_model_that_babbles_is_no_judge(judge: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are random: what it says freely is no judgement, and no response is blamed for that."""
    monkeypatch.setenv("REWARD_API_KEY", judge.key)
    config = judged_by(judge, structured=False)
    for reward in Verifiers(config).judge(prompt("judge"), [Response("a", 1), Response("b", 1)]):
        assert (reward.score, reward.verdict) == (0.0, Verdict.FAILED)
        assert "no score from 0 to 10" in reward.reason


def test_a_judge_that_is_held_to_the_form_gives_scores(
    judge: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same model, where the server lets it choose among the tokens that the form allows."""
    monkeypatch.setenv("REWARD_API_KEY", judge.key)
    template = tmp_path / "short.j2"
    template.write_text("{{ response }}")
    # It closes the quotes of its reason by chance, as one of 259 tokens, and later than this in one of a thousand.
    config = judged_by(judge, template=str(template), temperature=1.0, samples=4, max_tokens=1900)
    verifiers = Verifiers(config)
    responses = [Response("a", 1), Response("b", 1)]
    rewards = verifiers.judge(prompt("judge"), responses)
    for reward in rewards:
        assert reward.verdict in (Verdict.CORRECT, Verdict.WRONG), reward.reason
        assert 0 <= reward.score <= 1
    again = verifiers.judge(prompt("judge"), responses)
    assert [reward.score for reward in again] == [reward.score for reward in rewards]


def test_a_whole_run_with_a_rule_a_reward_model_in_an_actor_and_a_judge(
    judge: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REWARD_API_KEY", judge.key)
    verifiers = {
        "math": ("integer", "4"),
        "chat": ("reward_model", "-"),
        "essays": ("judge", '{"rubric": "Is brief."}'),
    }
    rows = [
        {"prompt": f"{domain} {number}?", "answer": answer, "verifier": verifier, "domain": domain}
        for domain, (verifier, answer) in verifiers.items()
        for number in range(8)
    ]
    data, template = tmp_path / "rows.jsonl", tmp_path / "short.j2"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template.write_text("{{ rubric }} {{ response }}")
    run = train(
        *SMALL, f"hydra.run.dir={tmp_path / 'run'}", "data=jsonl", f"data.path={data}", "sft.enabled=never",
        "evaluation.prompts=3", f"reward.model.path={make_tiny_reward_model(tmp_path / 'scorer')}",
        "reward.model.dtype=float32", f"reward.judge.url={judge.url}/v1", "reward.judge.model=tiny",
        f"reward.judge.template={template}", "reward.judge.temperature=1", "reward.judge.max_tokens=1900",
        "reward.judge.samples=3", "algo.group_size=2", "algo.token_budget=500", "train.steps=2",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    steps = read_steps(tmp_path / "run")
    for step in steps:
        assert step["c3po/trained_tokens"] == 500
        assert_balanced(step)
    # The policy's weights are random: only those whose own weights are as random find anything in what it says.
    found = {domain: [step.get(f"reward/{domain}/mean") for step in steps] for domain in verifiers}
    assert any(found["chat"])
    assert any(found["essays"])
    assert not any(found["math"])
    assert not any(step.get(f"reward/{domain}/failures") for domain in ("math", "chat") for step in steps)
    assert judge.key not in "".join(file.read_text() for file in (tmp_path / "run").glob("*.*l"))
