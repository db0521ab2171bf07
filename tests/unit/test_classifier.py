"""A sequence classifier as a reward model, against transformers' own forward pass on one text at a time."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, LlamaConfig, PreTrainedConfig

from ring_ray.config import ConfigError, RewardConfig, RewardModelConfig
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.rewards.open_ended.classifier import SequenceClassifier, batches
from ring_ray.rewards.open_ended.reward_model import conversation
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Reward, Verdict
from tests.unit.reward_models import make_tiny_reward_model, scores_of_transformers, tiny_config
from tests.unit.test_open_ended import prompt
from tests.unit.test_rewards import responses

QUESTION = "Why is the sky blue?"
TEXTS = ["", "It is.", "Air scatters blue light more than red. " * 5, "é∑🙂", "It is.", "no " * 40]


def local(path: str, **keys: object) -> RewardModelConfig:
    return RewardModelConfig(path=path, dtype="float32", **keys)  # type: ignore[arg-type]


def families() -> dict[str, PreTrainedConfig]:
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {"qwen3": tiny_config(), "llama": LlamaConfig(**narrow, num_key_value_heads=1, num_labels=1)}


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_scores_are_those_of_transformers(tmp_path: Path, family: str, pad_is_eos: bool, batch_tokens: int) -> None:
    path = make_tiny_reward_model(tmp_path, families()[family], pad_is_eos=pad_is_eos)
    classifier = SequenceClassifier(local(path, batch_tokens=batch_tokens))
    found = classifier.scores([conversation(QUESTION, text) for text in TEXTS])
    expected = scores_of_transformers(path, QUESTION, TEXTS)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 2) for score in expected}) == len(set(TEXTS))


def test_a_local_reward_model_is_a_verifier(tmp_path: Path) -> None:
    path = make_tiny_reward_model(tmp_path)
    raw = scores_of_transformers(path, "Why?", ["a", "b"])
    config = RewardConfig(model=local(path, center=sum(raw) / 2, scale=2.0))
    verifiers = Verifiers(config)
    verifiers.check([prompt("reward_model")])
    rewards = verifiers.judge(prompt("reward_model"), responses("a", "b"))
    assert sum(reward.score for reward in rewards) == pytest.approx(1.0, abs=1e-4)
    better = max(range(2), key=lambda index: raw[index])
    assert [reward.verdict is Verdict.CORRECT for reward in rewards] == [index == better for index in range(2)]


def test_a_local_reward_model_loads_its_weights_where_it_starts_and_once(tmp_path: Path) -> None:
    """The driver, which only checks, reads none."""
    path = make_tiny_reward_model(tmp_path)
    weights = Path(path, "model.safetensors")
    away = weights.rename(tmp_path / "away")
    verifiers = Verifiers(RewardConfig(model=local(path)))
    verifiers.check([prompt("reward_model")])
    with pytest.raises(OSError, match=r"model\.safetensors"):
        verifiers.start(["reward_model"])
    away.rename(weights)
    verifiers.start(["reward_model"])
    weights.unlink()
    (reward,) = verifiers.judge(prompt("reward_model"), responses("a"))
    assert reward.verdict in (Verdict.CORRECT, Verdict.WRONG), reward.reason


def test_what_is_longer_than_the_context_has_no_score(tmp_path: Path) -> None:
    path = make_tiny_reward_model(tmp_path)
    short, long = SequenceClassifier(local(path)).scores([conversation("?", "a"), conversation("?", "a" * 510)])
    assert isinstance(short, float)
    assert isinstance(long, Reward)
    assert long.verdict is Verdict.FAILED
    assert long.reason == "the reward model's context has 512 tokens, question and response 514"


def test_a_model_that_is_no_reward_model_is_refused_by_its_key(tmp_path: Path) -> None:
    def refused(path: str, why: str) -> None:
        with pytest.raises(ConfigError, match=rf"^reward\.model\.path=.*{why}"):
            Verifiers(RewardConfig(model=local(path))).check([prompt("reward_model")])

    refused(str(tmp_path / "nothing"), "no config.json that transformers can read")
    make_tiny_model(tmp_path / "policy", seed=0, hidden_size=32)
    refused(str(tmp_path / "policy"), "must be a sequence classifier with one label, not 2 of Qwen3MoeForCausalLM")
    refused(make_tiny_reward_model(tmp_path / "two", tiny_config(num_labels=2)), "with one label, not 2 of")


def test_a_head_that_would_be_random_is_refused(tmp_path: Path) -> None:
    """The weights of a language model, under the config of a classifier."""
    path = make_tiny_reward_model(tmp_path / "model")
    make_tiny_model(tmp_path / "policy", seed=0, hidden_size=64)
    Path(path, "model.safetensors").write_bytes((tmp_path / "policy" / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"^reward\.model\.path=.*its weights lack .*score\.weight"):
        SequenceClassifier(local(path))


def test_a_model_with_another_kind_of_head_is_refused(tmp_path: Path) -> None:
    narrow = BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    path = make_tiny_reward_model(tmp_path, narrow)
    with pytest.raises(ConfigError, match="BertForSequenceClassification is no decoder with a linear head"):
        SequenceClassifier(local(path))


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 200))
def test_batches_hold_every_row_once_within_their_tokens(lengths: list[int], tokens: int) -> None:
    rows = [[0] * length for length in lengths]
    order = sorted(range(len(rows)), key=lambda index: lengths[index])
    found = list(batches(order, rows, tokens))
    assert [index for batch in found for index in batch] == order
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= tokens
