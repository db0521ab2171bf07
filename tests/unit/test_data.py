import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import DataConfig, ModelConfig, RunConfig
from ring_ray.data.rows import DataError, Row
from ring_ray.data.source import PromptSource, load_prompts, split
from ring_ray.data.tokenizer import load_tokenizer, render
from ring_ray.engines.tiny_model import make_tiny_model, make_tiny_tokenizer
from ring_ray.types import Prompt

TOKENIZER = make_tiny_tokenizer()


def load_sums(seed: int = 0, **data: int) -> PromptSource:
    config = RunConfig(seed=seed, data=DataConfig(source="sums", **data))  # type: ignore[arg-type]
    return load_prompts(config, TOKENIZER, ("integer",))


def row(text: str) -> Row:
    return Row(id="d.jsonl:7", domain="d", messages=({"role": "user", "content": text},), verifier="v", answer="1")


def prompts(count: int) -> list[Prompt]:
    ids = np.zeros(1, np.int32)
    return [
        Prompt(index=index, id=f"d:{index}", domain="d", text=f"{index}?", token_ids=ids, verifier="v", answer="1")
        for index in range(count)
    ]


class TestSums:
    def test_prompts_are_distinct_sums_of_at_most_max_digits(self) -> None:
        source = load_sums(size=1000)
        prompts = [*source.training, *source.held_out]
        assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts) > 500
        digits = set()
        for prompt in prompts:
            operands = re.fullmatch(r"Calculate (\d+) \+ (\d+)\.", prompt.text)
            assert operands is not None
            assert int(prompt.answer) == int(operands[1]) + int(operands[2])
            assert prompt.verifier == "integer"
            digits |= {len(operands[1]), len(operands[2])}
        assert digits == {1, 2}

    def test_the_seed_decides_the_prompts(self) -> None:
        first, again, other = load_sums(0, size=200), load_sums(0, size=200), load_sums(1, size=200)
        texts = [[prompt.text for prompt in source.training] for source in (first, again, other)]
        assert texts[0] == texts[1]
        # Neighbouring seeds of reasoning-gym share all rows but one.
        assert len(set(texts[0]) & set(texts[2])) < len(texts[0]) / 2

    def test_no_run_trains_on_what_another_seed_holds_out(self) -> None:
        sources = [load_sums(seed, size=2000) for seed in (0, 1)]
        training = {prompt.text for source in sources for prompt in source.training}
        held_out = {prompt.text for source in sources for prompt in source.held_out}
        assert not training & held_out
        fractions = [len(source.held_out) / (len(source) + len(source.held_out)) for source in sources]
        assert fractions == pytest.approx([0.1, 0.1], abs=0.03)

    def test_prompts_are_rendered_with_the_chat_template(self) -> None:
        prompt = load_sums(size=20).training[0]
        assert TOKENIZER.decode(prompt.token_ids) == prompt.text + "<|assistant|>"
        assert prompt.token_ids.dtype == np.int32


class TestSplit:
    @given(st.sets(st.integers(), min_size=2, max_size=30), st.floats(0.01, 0.99))
    def test_both_sides_have_prompts_and_none_is_on_both(self, numbers: set[int], fraction: float) -> None:
        sides = split([row(str(number)) for number in numbers], fraction, "data.path")
        training, held_out = ({int(each.text) for each in side} for side in sides)
        assert training
        assert held_out
        assert training | held_out == numbers
        assert not training & held_out

    def test_a_prompt_stays_on_its_side_whatever_else_there_is(self) -> None:
        rows = [row(str(number)) for number in range(1000)]
        for some in (rows[:500], rows[500:]):
            assert split(some, 0.2, "data.path") == tuple(
                [each for each in some if each in side] for side in split(rows, 0.2, "data.path")
            )

    def test_every_domain_of_two_prompts_is_on_both_sides(self) -> None:
        rows = [
            replace(row(f"{domain} {number}"), domain=f"{domain}") for domain in range(9) for number in range(domain)
        ]
        for side in split(rows, 0.01, "data.path"):
            assert {each.domain for each in side} >= {f"{domain}" for domain in range(2, 9)}
        alone = [replace(row(name), domain=name) for name in "ab"]
        assert [len(side) for side in split(alone, 0.01, "data.path")] == [1, 1]

    def test_the_hash_is_the_same_in_every_process(self) -> None:
        held_out = split([row(str(number)) for number in range(20)], 0.2, "data.path")[1]
        assert [each.text for each in held_out] == ["2", "6", "17", "18"]

    def test_too_few_distinct_prompts(self) -> None:
        with pytest.raises(DataError, match=r"data\.size: 1 distinct prompts, need at least 2"):
            split([row("?")], 0.1, "data.size")


class TestPromptSource:
    def test_each_epoch_holds_every_prompt_once_in_its_own_order(self) -> None:
        source = PromptSource(prompts(40), (), 0)
        epochs = [[source.next() for _ in range(len(source))] for _ in range(3)]
        expected = sorted(prompt.id for prompt in source.training)
        assert all(sorted(prompt.id for prompt in epoch) == expected for epoch in epochs)
        assert len({tuple(prompt.id for prompt in epoch) for epoch in epochs}) == 3
        assert [prompt.index for epoch in epochs for prompt in epoch] == list(range(3 * len(source)))

    def test_the_seed_decides_the_order(self) -> None:
        sources = [PromptSource(prompts(40), (), seed) for seed in (0, 0, 1)]
        orders = [[source.next().id for _ in range(40)] for source in sources]
        assert orders[0] == orders[1] != orders[2]

    @pytest.mark.parametrize("issued", [0, 1, 6, 7, 8, 14, 20])
    def test_restore_goes_on_where_the_state_was_taken(self, issued: int) -> None:
        source, resumed = (PromptSource(prompts(7), (), 3) for _ in range(2))
        for _ in range(issued):
            source.next()
        digest = source.state()["digest"]
        assert source.state() == {"issued": issued, "domains": {"d": issued}, "digest": digest}
        resumed.restore(json.loads(json.dumps(source.state())))
        for _ in range(20):
            expected, prompt = source.next(), resumed.next()
            assert (prompt.index, prompt.id) == (expected.index, expected.id)

    def test_restore_refuses_a_cursor_of_other_data(self) -> None:
        answered = [*prompts(6), replace(prompts(7)[6], answer="2")]
        tokenized = [*prompts(6), replace(prompts(7)[6], token_ids=np.ones(1, np.int32))]
        cursor = PromptSource(prompts(7), (), 0).state()
        for other in (prompts(8), prompts(7)[::-1], answered, tokenized):
            with pytest.raises(DataError, match=f"not taken from these {len(other)} training prompts"):
                PromptSource(other, (), 0).restore(cursor)
        with pytest.raises(DataError, match="seed=1 has changed"):
            PromptSource(prompts(7), (), 1).restore(cursor)


class TestTokenizer:
    def test_without_a_chat_template_the_prompt_is_plain_text(self) -> None:
        plain = make_tiny_tokenizer()
        plain.chat_template = None
        assert TOKENIZER.decode(render(row("What is 1?"), plain, 64)) == "What is 1?"

    def test_a_prompt_of_just_the_limit_fits(self) -> None:
        assert len(render(row("a" * 7), TOKENIZER, 8)) == 8
        with pytest.raises(DataError, match=r"d\.jsonl:7: the prompt has 9 tokens, .*rollout\.max_prompt_tokens=8"):
            render(row("a" * 8), TOKENIZER, 8)

    def test_a_template_that_refuses_the_messages_is_named(self) -> None:
        strict = make_tiny_tokenizer()
        strict.chat_template = "{{ raise_exception('no system role') }}"
        with pytest.raises(DataError, match=r"d\.jsonl:7: the tokenizer's chat template refuses .*no system role"):
            render(row("What is 1?"), strict, 64)

    def test_loads_from_a_model_directory(self, tmp_path: Path) -> None:
        make_tiny_model(tmp_path, 0, layers=1)
        assert load_tokenizer(str(tmp_path), ModelConfig()).get_vocab() == TOKENIZER.get_vocab()

    @pytest.mark.parametrize("missing", ["tokenizer files", "everything"])
    def test_a_directory_without_one_is_refused(self, tmp_path: Path, missing: str) -> None:
        make_tiny_model(tmp_path, 0, layers=1)
        for file in tmp_path.iterdir():
            if missing == "everything" or file.name.startswith("tokenizer"):
                file.unlink()
        with pytest.raises(DataError, match=rf"model\.path='{tmp_path}': no tokenizer that transformers can load: "):
            load_tokenizer(str(tmp_path), ModelConfig())

    def test_one_without_eos_is_refused(self, tmp_path: Path) -> None:
        tokenizer = make_tiny_tokenizer()
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(DataError, match=r"model\.path=.*no eos token"):
            load_tokenizer(str(tmp_path), ModelConfig())
