"""Which runs belong together, and what they are called."""

import pytest

from ring_ray.report.groups import differences, group_runs, shortest_names
from ring_ray.report.runs import Run


def told(name: str, **settings: object) -> Run:
    """A run with settings such as ``algo__name="c3po"``."""
    by_key = {key.replace("__", "."): value for key, value in settings.items()}
    return Run(name=name, rows=[], summary=None, config="", settings=by_key)


def test_runs_that_differ_only_in_seed_and_place_are_a_group():
    runs = [
        told("b", seed=10, algo__name="c3po", run_dir="x", tracking__group="one"),
        told("c", seed=0, algo__name="grpo", run_dir="y", tracking__group="one"),
        told("a", seed=9, algo__name="c3po", run_dir="z", tracking__group="two"),
    ]
    c3po, grpo = group_runs(runs)
    assert (c3po.name, [run.name for run in c3po.runs]) == ("algo=c3po", ["a", "b"])  # by seed
    assert (grpo.name, [run.name for run in grpo.runs]) == ("algo=grpo", ["c"])
    assert c3po.color != grpo.color


def test_one_setting_is_called_by_its_algorithm_and_one_run_by_its_directory():
    seeds = [told(str(seed), seed=seed, algo__name="dapo") for seed in (0, 1)]
    assert [group.name for group in group_runs(seeds)] == ["algo=dapo"]
    assert [group.name for group in group_runs(seeds[:1])] == ["0"]


def test_runs_without_a_config_stand_alone_under_their_own_names():
    runs = [told("first"), told("second"), told("third", algo__name="c3po")]
    assert [group.name for group in group_runs(runs)] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        # the algorithm's name stands for all that follows from it, wherever it is
        (
            [{"algo.clip_range": "0.2", "algo.name": "c3po"}, {"algo.clip_range": "0.1", "algo.name": "grpo"}],
            ["algo=c3po", "algo=grpo"],
        ),
        # ... unless it tells too little
        (
            [{"algo.name": "c3po", "algo.group_size": "8"}, {"algo.name": "c3po", "algo.group_size": "16"}],
            ["algo.group_size=8", "algo.group_size=16"],
        ),
        # one key is better than two
        (
            [
                {"algo.name": "c3po", "algo.token_budget": "1", "train.steps": "1"},
                {"algo.name": "grpo", "algo.token_budget": "1", "train.steps": "2"},
                {"algo.name": "grpo", "algo.token_budget": "2", "train.steps": "3"},
            ],
            ["train.steps=1", "train.steps=2", "train.steps=3"],
        ),
        (
            [
                {"train.learning_rate": rate, "algo.name": algo, "algo.selection": algo}
                for algo in ("c3po", "grpo")
                for rate in ("0.1", "0.2")
            ],
            [f"algo={algo} train.learning_rate={rate}" for algo in ("c3po", "grpo") for rate in ("0.1", "0.2")],
        ),
        # a key that everyone has is better than one that an older version did not write
        (
            [{"algo.carry": "true", "seed": "0"}, {"algo.behaviour": "rollout", "algo.carry": "false"}],
            ["algo.carry=true", "algo.carry=false"],
        ),
        (
            [{"algo.carry": "true"}, {"algo.carry": "true", "algo.behaviour": "rollout"}],
            ["algo.behaviour=unset", "algo.behaviour=rollout"],
        ),
    ],
)
def test_a_name_is_the_fewest_settings_that_tell_it_from_the_others(settings, names):
    assert shortest_names(settings) == names


def test_equal_settings_have_no_names():
    with pytest.raises(ValueError, match="equal"):
        shortest_names([{"algo.name": "c3po"}, {"algo.name": "c3po"}])


def test_differences_hold_a_value_for_everyone():
    assert differences([{"a": "1", "b": "1"}, {"a": "1", "b": "2"}, {"a": "1"}]) == {"b": ("1", "2", "unset")}


def test_values_are_written_as_in_the_config():
    for values, written in (
        ((True, False), ("true", "false")),
        ((None, ""), ("null", "''")),
        ((1e-5, 2), ("1e-05", "2")),
    ):
        runs = [told(str(value), key=value) for value in values]
        assert [group.name for group in group_runs(runs)] == [f"key={text}" for text in written]
