"""A model is refused, by what is wrong with it, before anything starts: its files, its vocabulary, its end of text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from ring_ray.config import AlgoConfig, ConfigError, ModelConfig, RolloutConfig, TrainConfig
from ring_ray.data.rows import DataError
from ring_ray.data.tokenizer import decode, load_tokenizer
from ring_ray.engines.hf import check_context, check_model, check_policy
from ring_ray.engines.tiny_model import make_tiny_model, make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
ROWS = len(TOKENIZER)
DAMAGE = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b"\xff",
    b'{"model_type": "nope"}',
    b'{"model_type": 3}',
    b"version https://lfs",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path, 0, hidden_size=32, layers=1)
    return tmp_path


def check(model: Path) -> None:
    """What a run checks before it starts anything."""
    path, config = str(model), ModelConfig()
    check_model(path, config, load_tokenizer(path, config))
    check_context(path, config, RolloutConfig())
    check_policy(path, config, TrainConfig(), AlgoConfig())


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_model_of_its_own_tokenizer_is_accepted(model: Path) -> None:
    check(model)


def test_a_padded_embedding_is_accepted(model: Path) -> None:
    change(model / "config.json", vocab_size=320)
    check(model)


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(model: Path) -> None:
    more = make_tiny_tokenizer()
    more.add_tokens([AddedToken("<|more|>")])
    more.save_pretrained(model)
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': .* {ROWS + 1} ids, .* only {ROWS} rows: "):
        check(model)


@pytest.mark.parametrize("ends", [7, [7, 9], None])
def test_a_model_that_does_not_end_at_its_tokenizers_eos_is_refused(model: Path, ends: object) -> None:
    for name in ("config.json", "generation_config.json"):
        change(model / name, eos_token_id=ends)
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': its tokenizer's eos is '<\|eos\|>', id 256, but "):
        check(model)


def test_a_model_may_end_at_more_than_its_tokenizers_eos(model: Path) -> None:
    change(model / "generation_config.json", eos_token_id=[7, TOKENIZER.eos_token_id])
    check(model)


def test_without_a_generation_config_the_models_own_eos_counts(model: Path) -> None:
    (model / "generation_config.json").unlink()
    check(model)
    change(model / "config.json", eos_token_id=7)
    with pytest.raises(ConfigError, match=r"responses end at the ids \[7\]"):
        check(model)


def test_a_tokenizer_without_a_model_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=rf"model\.path='{tmp_path}': no config\.json that transformers can read"):
        check(tmp_path)


def test_a_model_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': has no \*\.safetensors"):
        check(model)


@pytest.mark.parametrize(
    "damaged", [lambda whole: whole[:-1], lambda whole: whole[:100], lambda _: b"version https://"]
)
def test_weights_that_are_cut_short_or_were_never_fetched_are_refused(
    model: Path, damaged: Callable[[bytes], bytes]
) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(damaged(weights.read_bytes()))
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': model\.safetensors is damaged"):
        check(model)


@pytest.mark.parametrize("content", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused_or_does_not_matter(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    try:
        check(model)
    except (ConfigError, DataError) as error:
        refusal = str(error)
    else:
        assert name == "tokenizer_config.json"  # all that it says may be in tokenizer.json
        return
    assert f"model.path='{model}'" in refusal


@pytest.mark.parametrize("values", [{"eos_token_id": "256"}, {"eos_token_id": 1.5}, {"max_new_tokens": "x"}])
def test_a_generation_config_of_other_types_is_refused(model: Path, values: dict[str, Any]) -> None:
    change(model / "generation_config.json", **values)
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': .*generation_config\.json"):
        check(model)


@pytest.mark.parametrize("values", [{"num_attention_heads": 0}, {"pad_token_id": 999}, {"hidden_act": "nope"}])
def test_a_config_that_no_model_can_be_built_from_is_refused(model: Path, values: dict[str, Any]) -> None:
    change(model / "config.json", **values)
    with pytest.raises(ConfigError, match=rf"model\.path='{model}': "):
        check(model)


@given(st.lists(st.integers(0, ROWS + 60), max_size=20))
def test_an_id_that_no_token_has_is_seen_in_the_text(ids: list[int]) -> None:
    text = decode(TOKENIZER, np.array(ids, np.int32))
    assert text.count("\ufffd") >= sum(token_id >= ROWS for token_id in ids)
    if all(token_id < ROWS for token_id in ids):
        assert text == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_an_id_that_no_token_has_joins_no_digits() -> None:
    four, two = TOKENIZER("42")["input_ids"]
    assert decode(TOKENIZER, np.array([four, ROWS, two, TOKENIZER.eos_token_id], np.int32)) == "4\ufffd2"
    assert decode(TOKENIZER, np.array([], np.int32)) == ""
