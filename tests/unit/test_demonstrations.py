from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import DataConfig, RunConfig
from ring_ray.data.demonstrations import demonstrations
from ring_ray.data.source import PromptSource, load_prompts
from ring_ray.data.sums import add_in_columns
from ring_ray.engines.tiny_model import make_tiny_tokenizer
from ring_ray.types import Prompt

TOKENIZER = make_tiny_tokenizer()


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (32, 15, r"2+5=7 3+1=4 \boxed{47}"),
        (47, 65, r"7+5=12 4+6+1=11 \boxed{112}"),
        (5, 97, r"5+7=12 0+9+1=10 \boxed{102}"),
        (0, 0, r"0+0=0 \boxed{0}"),
    ],
)
def test_form(first: int, second: int, text: str) -> None:
    assert add_in_columns(str(first), str(second)) == text


@given(st.integers(0, 10**6 - 1), st.integers(0, 10**6 - 1))
def test_every_step_and_the_answer_are_right(first: int, second: int) -> None:
    *steps, answer = add_in_columns(str(first), str(second)).split()
    assert answer == rf"\boxed{{{first + second}}}"
    assert len(steps) == max(len(str(first)), len(str(second)))
    totals = []
    for step in steps:
        terms, total = step.split("=")
        assert sum(int(term) for term in terms.split("+")) == int(total)
        totals.append(int(total))
    *lower, last = totals
    assert int(str(last) + "".join(str(total % 10) for total in reversed(lower))) == first + second


def test_the_stream_is_endless_seeded_and_of_training_prompts_only() -> None:
    source = load_prompts(RunConfig(data=DataConfig(size=50)), TOKENIZER, ("integer",))
    count = 2 * len(source) + 1
    first, again, other = (list(islice(demonstrations(source, TOKENIZER, seed), count)) for seed in (0, 0, 1))
    texts = [[demonstrated.text for demonstrated, _ in stream] for stream in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert set(texts[0]) == {training.text for training in source.training}
    assert source.state()["issued"] == 0
    for demonstrated, ids in first:
        assert ids.dtype == np.int32
        assert ids[-1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(ids[:-1]) == source.demonstrations[demonstrated.id]


def test_prompts_without_a_demonstration_are_left_out() -> None:
    ids = np.zeros(1, np.int32)
    prompts = [
        Prompt(index=0, id=name, domain="d", text=name, token_ids=ids, verifier="v", answer="0")
        for name in ("plain", "shown")
    ]
    source = PromptSource(prompts, (), 0, demonstrations={"shown": "worked"})
    found = [*islice(demonstrations(source, TOKENIZER, 0), 5)]
    assert {(prompt.id, TOKENIZER.decode(shown[:-1])) for prompt, shown in found} == {("shown", "worked")}
    with pytest.raises(ValueError, match="no training prompt has a demonstration"):
        next(demonstrations(PromptSource(prompts, (), 0), TOKENIZER, 0))
