"""Mixtures of domains: the shares of each, whatever their sizes, and the same prompts after a checkpoint."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import ConfigError, DataConfig, RolloutConfig, RunConfig
from ring_ray.data.rows import DataError
from ring_ray.data.source import PromptSource, load_prompts
from ring_ray.engines.tiny_model import make_tiny_tokenizer
from ring_ray.types import Prompt

SIZES = st.dictionaries(st.sampled_from(["math", "code", "games", "science"]), st.integers(1, 9), min_size=1)
SHARES = st.floats(0.01, 10) | st.just(0.0)


def prompts(sizes: dict[str, int]) -> list[Prompt]:
    ids = np.zeros(1, np.int32)
    return [
        Prompt(index=0, id=f"{name}:{n}", domain=name, text=f"{name} {n}", token_ids=ids, verifier="v", answer="1")
        for name, size in sizes.items()
        for n in range(size)
    ]


def ids(source: PromptSource, count: int) -> list[str]:
    return [source.next().id for _ in range(count)]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, float], int]:
    sizes = draw(SIZES)
    weights = {name: draw(SHARES) for name in sizes}
    weights[next(iter(sizes))] += 0.5
    return sizes, weights, draw(st.integers(0, 2**31 - 1))


@given(mixtures(), st.integers(1, 400))
def test_each_domain_has_its_share_after_any_number_of_prompts(
    mixture: tuple[dict[str, int], dict[str, float], int], count: int
) -> None:
    sizes, weights, seed = mixture
    source = PromptSource(prompts(sizes), (), seed, weights)
    seen = Counter(source.next().domain for _ in range(count))
    for name, weight in weights.items():
        assert abs(seen[name] - count * weight / sum(weights.values())) <= 2 + math.log2(count)
        assert weight > 0 or name not in seen
    assert len(source) == sum(size for name, size in sizes.items() if weights[name] > 0)


@given(mixtures())
def test_a_domain_repeats_nothing_before_it_has_issued_all(
    mixture: tuple[dict[str, int], dict[str, float], int],
) -> None:
    sizes, weights, seed = mixture
    source = PromptSource(prompts(sizes), (), seed, weights)
    issued: dict[str, list[str]] = {name: [] for name in sizes}
    for index in range(200):
        prompt = source.next()
        assert prompt.index == index
        issued[prompt.domain].append(prompt.id)
    for name, found in issued.items():
        for start in range(0, len(found), sizes[name]):
            epoch = found[start : start + sizes[name]]
            assert len(set(epoch)) == len(epoch)


@given(mixtures(), st.integers(0, 100))
def test_a_checkpoint_goes_on_with_the_same_prompts(
    mixture: tuple[dict[str, int], dict[str, float], int], before: int
) -> None:
    sizes, weights, seed = mixture
    source, resumed, other = (PromptSource(prompts(sizes), (), s, weights) for s in (seed, seed, seed + 1))
    ids(source, before)
    resumed.restore(json.loads(json.dumps(source.state())))
    assert ids(source, 60) == ids(resumed, 60)
    with pytest.raises(DataError, match=r"seed=\d+ has changed"):
        other.restore(source.state())


def test_the_next_stage_may_have_other_weights_and_goes_on_in_each_domain() -> None:
    sizes = {"math": 100, "code": 100}
    first = PromptSource(prompts(sizes), (), 0, {"math": 1.0, "code": 0.0})
    before = ids(first, 40)
    second = PromptSource(prompts(sizes), (), 0, {"math": 1.0, "code": 3.0})
    second.restore(first.state())
    after = [second.next() for _ in range(40)]
    assert Counter(prompt.domain for prompt in after)["code"] == pytest.approx(30, abs=3)  # from the first prompt on
    assert not set(before) & {prompt.id for prompt in after}
    assert after[0].index == 40


def test_the_seed_decides_the_order_of_a_mixture() -> None:
    orders = [
        ids(PromptSource(prompts({"math": 9, "code": 3}), (), seed, {"math": 1, "code": 1}), 30) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_without_weights_every_prompt_is_issued_once_an_epoch() -> None:
    source = PromptSource(prompts({"math": 9, "code": 3}), (), 0)
    assert len(set(ids(source, 12))) == 12


def write(directory: Path, name: str, domain: str, count: int) -> None:
    rows = [{"prompt": f"{name} {n}?", "answer": str(n), "domain": domain} for n in range(count)]
    (directory / name).write_text("\n".join(map(json.dumps, rows)))


def load(directory: Path, **data: object) -> PromptSource:
    source = DataConfig(source="jsonl", path=str(directory), **data)  # type: ignore[arg-type]
    config = RunConfig(data=source, rollout=RolloutConfig(max_prompt_tokens=64))
    return load_prompts(config, make_tiny_tokenizer(), ("math",))


def test_a_directory_holds_a_mixture(tmp_path: Path) -> None:
    write(tmp_path, "b.jsonl", "math", 200)
    write(tmp_path, "a.jsonl", "code", 20)
    (tmp_path / "README.md").write_text("not data")
    source = load(tmp_path, weights={"math": 1, "code": 3})
    assert [prompt.domain for prompt in source.held_out][:4] == ["code", "math"] * 2  # in turns, as long as there are
    assert {prompt.id.partition(":")[0] for prompt in source.training} == {"a.jsonl", "b.jsonl"}
    assert Counter(source.next().domain for _ in range(100))["code"] == pytest.approx(75, abs=3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"math": 1}, r"data\.weights\.code: a\.jsonl:\d+ has this domain: give it a weight, or 0 to leave it out"),
        (
            {"math": 1, "code": 1, "cods": 1},
            r"data\.weights\.cods: no training prompt has this domain; did you mean code",
        ),
        ({"math": 1, "code": 1, "x": 1}, r"data\.weights\.x: no training prompt has this domain, only code, math"),
    ],
)
def test_weights_are_those_of_the_domains_in_the_data(tmp_path: Path, weights: dict[str, float], message: str) -> None:
    write(tmp_path, "a.jsonl", "code", 9)
    write(tmp_path, "b.jsonl", "math", 9)
    with pytest.raises(DataError, match=message):
        load(tmp_path, weights=weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"math": -1.0}, r"data\.weights\.math=-1\.0: must not be negative"),
        ({"math": 0.0}, r"data\.weights=\{'math': 0\.0\}: must not all be 0"),
    ],
)
def test_weights_that_no_prompt_could_have(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(weights=weights)


def test_weights_are_finite() -> None:
    with pytest.raises(ConfigError, match=r"data\.weights\.math=inf: must be finite"):
        RunConfig(data=DataConfig(weights={"math": math.inf}))
