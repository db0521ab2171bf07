"""When training counts as collapsed: by example, and in random runs against a plain reckoning of the same means."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.algo.guard import Collapse, CollapseDetector
from ring_ray.config import CheckpointConfig, ConfigError, GuardConfig, RunConfig

Run = list[tuple[float, float]]  # entropy and reward of each step

runs = st.lists(st.tuples(st.floats(0, 10), st.floats(-1, 1)), max_size=40)
configs = st.builds(
    GuardConfig,
    window=st.integers(1, 6),
    min_entropy=st.floats(0, 2),
    max_entropy=st.none() | st.floats(3, 9),
    min_reward_fraction=st.floats(0, 0.99),
)


def observed(config: GuardConfig, run: Run) -> list[Collapse | None]:
    detector = CollapseDetector(config)
    return [detector.observe(step, entropy=entropy, reward=reward) for step, (entropy, reward) in enumerate(run, 1)]


def first_collapse(config: GuardConfig, run: Run) -> Collapse:
    return next(found for found in observed(config, run) if found)


def test_entropy_that_falls_is_found_once_its_mean_is_below_the_limit() -> None:
    config = GuardConfig(window=2, min_entropy=0.1, min_reward_fraction=0)
    found = first_collapse(config, [(0.5, 0), (0.05, 0), (0.16, 0), (0.02, 0), (0.02, 0)])
    assert (found.first, found.last) == (3, 4)
    assert found.finding == "policy/entropy 0.09 is below guard.min_entropy=0.1"
    assert "algo.entropy_coefficient" in found.advice


def test_entropy_that_explodes_is_found_where_there_is_a_limit() -> None:
    run = [(1.0, 0.0), (7.0, 0.0), (9.0, 0.0)]
    found = first_collapse(GuardConfig(window=2, max_entropy=5.0), run)
    assert (found.first, found.last) == (2, 3)
    assert found.finding == "policy/entropy 8 is above guard.max_entropy=5"
    assert observed(GuardConfig(window=2), run) == [None] * 3


def test_rewards_are_held_against_the_best_so_far() -> None:
    config = GuardConfig(window=2, min_reward_fraction=0.5)
    found = first_collapse(config, [(1, 0.1), (1, 0.1), (1, 0.7), (1, 0.9), (1, 0.5), (1, 0.4), (1, 0.3)])
    assert (found.first, found.last) == (6, 7)
    assert found.finding == "reward/mean 0.35 is below guard.min_reward_fraction=0.5 of 0.8, the highest so far"


@given(configs, runs)
def test_each_step_is_judged_by_the_means_over_the_window(config: GuardConfig, run: Run) -> None:
    best = 0.0
    for step, found in enumerate(observed(config, run), 1):
        if step < config.window:
            assert found is None
            continue
        entropy, reward = map(statistics.fmean, zip(*run[step - config.window : step], strict=True))
        best = max(best, reward)
        limits = (config.min_entropy, config.max_entropy or math.inf, config.min_reward_fraction * best)
        if any(math.isclose(*pair, rel_tol=1e-9) for pair in zip((entropy, entropy, reward), limits, strict=True)):
            continue  # too near to call
        collapsed = entropy < limits[0] or entropy > limits[1] or (best > 0 and reward < limits[2])
        assert (found is not None) == collapsed
        if found:
            assert (found.first, found.last) == (step - config.window + 1, step)


@given(runs, st.integers(1, 6))
def test_without_limits_there_is_no_collapse(run: Run, window: int) -> None:
    config = GuardConfig(window=window, min_entropy=0, min_reward_fraction=0)
    positive = [(entropy, abs(reward)) for entropy, reward in run]
    assert observed(config, positive) == [None] * len(run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"action": "panic"}, "guard.action='panic': must be off, stop or rollback"),
        ({"window": 0}, "guard.window=0"),
        ({"min_entropy": -0.1}, "guard.min_entropy=-0.1"),
        ({"min_entropy": 2.0, "max_entropy": 1.0}, "guard.max_entropy=1.0: must be above guard.min_entropy=2.0"),
        ({"min_reward_fraction": 1.0}, "guard.min_reward_fraction=1.0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (CheckpointConfig(every=0), "guard.action='rollback': needs checkpoints"),
        (CheckpointConfig(every=4, keep_last=3), "checkpoint.keep_last=3: must reach back over guard.window=10"),
    ],
)
def test_rollback_needs_checkpoints_that_reach_back_far_enough(checkpoint: CheckpointConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(guard=GuardConfig(action="rollback"), checkpoint=checkpoint)
    RunConfig(guard=GuardConfig(action="rollback"), checkpoint=CheckpointConfig(every=5, keep_last=3))
