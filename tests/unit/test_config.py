"""Every key and every file of conf/ is described; --help and docs/config.md say it."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ring_ray.config import ConfigError, RunConfig, did_you_mean
from ring_ray.config.help import groups, markdown, terminal
from ring_ray.config.keys import Key, names, sections

ROOT = Path(__file__).parents[2]
GROUPS = groups(ROOT / "conf")
KEYS = [key for section in sections(RunConfig()) for key in section.keys]


def leaves(config: dict[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def choices(key: Key) -> list[str]:
    """What the key may be, as the schema says where it refuses something else; nothing where they are not listed."""
    *path, name = key.name.split(".")
    try:
        replace(reduce(getattr, path, RunConfig()), **{name: "no such choice"})
    except ConfigError as error:
        _, listed, those = str(error).partition("must be ")
        return re.split(", | or ", those) if listed else []
    return []


CHOICES = {key: choices(key) for key in KEYS if key.type == "str" and choices(key)}


def test_the_keys_are_those_of_the_schema() -> None:
    assert sorted(key.name for key in KEYS) == sorted(leaves(asdict(RunConfig())))
    assert OmegaConf.to_object(OmegaConf.structured(RunConfig)) == RunConfig()


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_described(key: Key) -> None:
    assert re.fullmatch(r"\S.{8,}\.", key.description)


@pytest.mark.parametrize("key", CHOICES, ids=lambda key: key.name)
def test_a_description_names_every_choice(key: Key) -> None:
    assert {f"`{choice}`" for choice in CHOICES[key]} <= {*re.findall("`[^`]+`", key.description)}


def test_every_section_is_described() -> None:
    assert not [
        section.name for section in sections(RunConfig()) if not re.fullmatch(r"\S.{8,}\.", section.description)
    ]


def test_every_file_of_a_group_says_in_its_first_line_what_it_is_for() -> None:
    assert {"algo", "cluster", "data", "experiment"} <= {*GROUPS}
    texts = {f"{group}={name}": text for group, files in GROUPS.items() for name, text in files.items()}
    assert not [file for file, text in texts.items() if not text.endswith(".")]


def test_a_default_is_not_shared() -> None:
    config = RunConfig()
    config.tracking.overrides.append("seed=1")
    config.cluster.policy.workers = 2
    assert RunConfig().tracking.overrides == []
    assert RunConfig().cluster.policy.workers == 1


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == markdown(GROUPS), "run: python -m ring_ray.config.help > docs/config.md"


@pytest.mark.parametrize("width", [70, 120])
def test_the_help_has_every_key_with_the_value_of_the_run_and_fits_the_terminal(width: int) -> None:
    values = asdict(RunConfig(seed=7))
    text = terminal({"algo": {"c3po": "One " * 40, "grpo": "Another."}}, {"algo": "grpo"}, values, width)
    assert "  seed=7  " in text
    assert "  algo=grpo *  " in text
    assert "  algo=c3po  " in text
    assert all(f"\n  {key.name}=" in text for key in KEYS)
    assert max(map(len, text.splitlines())) <= width


def test_a_value_is_shown_as_the_command_line_has_it() -> None:
    text = terminal({}, {}, asdict(RunConfig()), 120)
    for shown in (
        "model.path=null",
        'data.instruction=""',
        "algo.carry=true",
        "tracking.overrides=[]",
        "data.source=sums",
    ):
        assert f"  {shown}  " in text


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert did_you_mean("algo.token_budgt", names(RunConfig())) == "; did you mean algo.token_budget?"
    assert did_you_mean("cluser", names(RunConfig())).startswith("; did you mean cluster")
    assert did_you_mean("xyzzy", names(RunConfig())) == ""
