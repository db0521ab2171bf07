"""Whatever a user may write into a config: it gives a valid one, or one error that says where to look."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.compose import CONF, composed
from ring_ray.config import ConfigError, RunConfig
from ring_ray.config.help import groups
from ring_ray.config.keys import names

KEYS = names(RunConfig())
CHOICES = [f"{group}={name}" for group, files in groups(CONF).items() for name in files]
FRAGMENTS = [
    "${seed}",
    "${data.path}",
    "${nope}",
    "${oc.env:NO_SUCH}",
    "${",
    "???",
    "null",
    "[1",
    "{a: 1}",
    "1e400",
    "\ud800",
]
TEXT = st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(0, 8).map(lambda digits: -(10 ** (4 * digits)))
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=4,
)
GROUPED = st.dictionaries(
    st.sampled_from(["algo", "/algo", "override /algo", "optional /algo", "/experiment", "a@b", ""]),
    st.sampled_from(["grpo", "mine", "nope", ["grpo"], "${x}", None, 3]),
    max_size=2,
)
DEFAULTS = st.lists(GROUPED | st.sampled_from(["_self_", "mine", "../experiment/mine"]) | VALUES, max_size=2) | VALUES
WHOLE = (CONF / "experiment" / "ring_lite.yaml").read_bytes()


def valid_or_refused(overrides: list[str], *places: str) -> None:
    """A config that is accepted comes back from a checkpoint's JSON; the error for one that is not names a place."""
    try:
        config = composed(overrides)
    except ConfigError as error:
        refusal = str(error)
    else:
        assert msgspec.json.decode(msgspec.json.encode(config), type=RunConfig) == config
        return
    assert any(place in refusal for place in places), refusal
    assert "full_key" not in refusal


def in_file(content: bytes, *keys: str) -> None:
    with TemporaryDirectory() as directory:
        file = Path(directory, "experiment", "mine.yaml")
        file.parent.mkdir()
        file.write_bytes(content)
        valid_or_refused(["experiment=mine", f"hydra.searchpath=[file://{directory}]"], "mine", *keys)


def written(value: object) -> str:
    """As a person types a value, with the quotes that Hydra's language has in common with YAML, or without any."""
    return (
        value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n")[0]
    )


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["", "", "+", "++", "~"]),
    st.sampled_from(KEYS) | st.sampled_from(sorted(groups(CONF))),
    VALUES.map(written),
)
def test_an_override(prefix: str, key: str, value: str) -> None:
    valid_or_refused([f"{prefix}{key}={value}"], key, key.rpartition(".")[2])


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(), max_size=12))
def test_what_is_no_override(text: str) -> None:
    valid_or_refused([text], text, "''")


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS) | TEXT, VALUES, min_size=1, max_size=3), DEFAULTS | st.none())
def test_a_file(values: dict[str, Any], defaults: object) -> None:
    tree: dict[Any, Any] = {} if defaults is None else {"defaults": defaults}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        branch = tree.setdefault(section, {}) if section else tree
        if isinstance(branch, dict):
            branch[name] = value
    text = yaml.safe_dump(tree, allow_unicode=True).encode(errors="surrogatepass")
    in_file(b"# @package _global_\n" + text, *values, *(key.rpartition(".")[2] for key in values), *groups(CONF))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_a_damaged_file(chance: random.Random, faults: int) -> None:
    content = bytearray(WHOLE)
    for _ in range(faults):
        start = chance.randrange(len(content))
        content[start : start + chance.choice([0, 1, 40])] = chance.choice(
            [b"", b"\n", b"\t", b":", b"[", b"\xff", b"&a *a"]
        )
    in_file(bytes(content), *KEYS, *groups(CONF))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "experiment/mine.yaml: Invalid loaded object type: int"),
        ("algo: 3", "experiment/mine.yaml: Merge error: int is not a subclass of AlgoConfig"),
        ("seed: &a [*a]", "experiment/mine.yaml: nested too deep, or in itself"),
        ("defaults: [mine]", "experiment=mine .*: nested too deep, or in itself"),
        ("defaults: [3]", "experiment/mine.yaml: Unsupported type in defaults"),
        ("defaults: [nope]", r"experiment/mine.yaml: Could not load 'experiment/nope'\.$"),
        ("seed: ${nope}", "seed: Interpolation key 'nope' not found"),
        ("algo: {correction_high: .inf}", r"algo\.correction_high=inf: must be finite"),
        ("algo: {clip_range_high: .inf}", r"algo\.clip_range_high=inf: must be finite"),
        ("train: {steps: 99999999999999999999}", r"train\.steps=99999999999999999999: must fit into 64 bits"),
        ("seed: 2147483648", r"seed=2147483648: must be from 0 to"),
        ('data: {path: "\\ud800"}', r"data\.path=.*lone surrogates"),
        ('model: {path: "a\\0"}', r"model\.path=.*NUL"),
        ("tracking: {overrides: [{a: 1}]}", r"tracking\.overrides=.*must be a list of text"),
    ],
)
def test_what_the_fuzzer_found(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        composed(["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"])


@pytest.mark.parametrize("override", ["algo=null", "algo=[1]", "seed=[", "a b"])
def test_what_the_fuzzer_found_on_the_command_line(override: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed([override])
    assert override in str(refused.value)
