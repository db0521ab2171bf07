from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ring_ray.engines.tiny_model import make_tiny_model, make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert len(ids) == len(text.encode())


def test_special_tokens_are_distinct_and_vanish_on_request() -> None:
    special = set(TOKENIZER.all_special_ids)
    assert len(special) == 3
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id
    assert TOKENIZER.decode([*TOKENIZER("7")["input_ids"], *special], skip_special_tokens=True) == "7"


def test_chat_template_adds_one_token_to_the_question() -> None:
    question = {"role": "user", "content": "Calculate 32 + 15."}
    ids = TOKENIZER.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    assert ids[:-1] == TOKENIZER(question["content"])["input_ids"]
    assert ids[-1] in TOKENIZER.all_special_ids
    assert ids[-1] not in (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def test_the_directory_loads_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        parameters = make_tiny_model(tmp_path / name, seed, layers=1)
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again", "other"))
    assert first.keys() == again.keys() == other.keys()
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    assert sum(weight.size for weight in first.values()) == parameters

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings >= 2048
    assert model.config.norm_topk_prob
    assert model.config.hidden_size % 32 == model.config.moe_intermediate_size % 32 == 0
    assert GenerationConfig.from_pretrained(tmp_path / "first").eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == TOKENIZER.chat_template


def test_a_width_that_the_kernels_refuse_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden_size=100: must be a multiple of 32"):
        make_tiny_model(tmp_path / "model", 0, hidden_size=100)
    assert not (tmp_path / "model").exists()
