"""Runs that differ only in their seed, put together and named by what their configs have that the others don't."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from typing import TypeAlias

from ring_ray.report.runs import Run

PALETTE = ("#3d82f6", "#e8793a", "#23a26d", "#b45fd3", "#d9a514", "#dd4b6b", "#1ba3b8", "#8a8f98")
UNSET = "unset"  # a key that another version's config doesn't have

Settings: TypeAlias = Mapping[str, str]
"""What a run was told, by dotted key, but not what makes it no other experiment: its seed, its place, its records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGroup:
    """Runs of one setting."""

    name: str
    color: str
    runs: tuple[Run, ...]  # by seed


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Groups in the order of their first runs. A run without config.yaml is a group of its own."""
    members: dict[object, list[Run]] = {}
    for run in runs:
        members.setdefault(frozenset(compared_settings(run).items()) or run.name, []).append(run)
    groups = list(members.values())
    return [
        RunGroup(name=name, color=color, runs=tuple(sorted(group, key=lambda run: (run.seed is None, run.seed))))
        for name, group, color in zip(_names(groups), groups, cycle(PALETTE), strict=False)
    ]


def compared_settings(run: Run) -> Settings:
    """The settings of a run as YAML writes them."""
    words = {None: "null", True: "true", False: "false"}
    return {
        key: words[value] if value is None or isinstance(value, bool) else str(value) or "''"
        for key, value in run.settings.items()
        if key not in ("seed", "run_dir") and not key.startswith("tracking.")
    }


def differences(settings: Sequence[Settings]) -> dict[str, tuple[str, ...]]:
    """The value of each for every key in which not all agree."""
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: tuple(each.get(key, UNSET) for each in settings) for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def shortest_names(settings: Sequence[Settings]) -> list[str]:
    """The fewest keys that tell all of them apart, and their values: ["algo=c3po", "algo=grpo"].

    A config group's name stands for whatever follows from it, so it goes first and is written as on the command line;
    keys that not all have go last. Raises ValueError where two settings are equal.
    """
    values = differences(settings)
    distinctions: dict[tuple[int, ...], str] = {}  # of keys that part the settings in the same way one is enough
    for key in sorted(values, key=lambda key: (not key.endswith(".name"), UNSET in values[key])):
        distinctions.setdefault(tuple(map(values[key].index, values[key])), key)
    for count in range(1, len(settings)):  # n settings never need more than n - 1 keys
        for keys in combinations(distinctions.values(), count):
            rows = list(zip(*(values[key] for key in keys), strict=True))
            if len(set(rows)) == len(settings):
                labels = [key.removesuffix(".name") for key in keys]
                return [" ".join(f"{label}={value}" for label, value in zip(labels, row, strict=True)) for row in rows]
    raise ValueError("two of the settings are equal")


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    firsts = [group[0] for group in groups]
    settings = [compared_settings(run) for run in firsts]
    if len(groups) == 1 and len(groups[0]) > 1:
        return [f"algo={firsts[0].algo}"]
    if len(groups) == 1 or not all(settings):
        return [run.name for run in firsts]
    return shortest_names(settings)
