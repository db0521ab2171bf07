"""Verifiers that are named in the config: reward.verifiers."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ring_ray.compose import composed
from ring_ray.config import ConfigError, RewardConfig
from ring_ray.data.rows import parse_row
from ring_ray.resume import differences
from ring_ray.rewards.base import GroupVerifier, Response, correct
from ring_ray.rewards.registry import Verifiers, factories
from ring_ray.types import Prompt, Reward, Verdict
from tests.unit.test_rewards import ASKED, responses

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def named(name: str, path: str) -> RewardConfig:
    return RewardConfig(verifiers={name: path})


def own(verifier: str) -> Verifiers:
    """With ``verifier`` of this file as "own"."""
    return Verifiers(named("own", f"{__name__}:{verifier}"))


def test_the_example_of_the_page_judges_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (override,) = re.findall(r"train\.py .*'(reward\.verifiers=.*)' \\$", PAGE, re.MULTILINE)
    rows = re.findall(r"^echo '(.*)' >> problems\.jsonl$", PAGE, re.MULTILINE)
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = composed([override])
    read, other = (
        parse_row(json.loads(row), "problems.jsonl:1", config.data, factories(config.reward)) for row in rows
    )
    assert read.text != other.text, "a run needs two prompts"
    asked = replace(ASKED, verifier=read.verifier, answer=read.answer)
    verifiers = Verifiers(config.reward)
    verifiers.check([asked])
    rewards = verifiers.judge(asked, responses("Tea, please !", "Tea!", ""))
    assert [reward.verdict for reward in rewards] == [Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE]
    assert rewards[0].reason == "says please"


class Together(GroupVerifier):
    """Knows its place in the group."""

    def __init__(self, config: RewardConfig) -> None:
        self._seconds = config.timeout_seconds
        self.started = False

    def start(self) -> None:
        self.started = True

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        return [correct(f"number {index}") for index, _ in enumerate(responses)]

    def seconds(self, responses: int) -> float:
        return 1000 * self._seconds


def test_a_verifier_of_ones_own_may_judge_groups() -> None:
    verifiers = own("Together")
    verifiers.start(["own"])
    found = verifiers.get("own")
    assert isinstance(found, Together)
    assert found.started
    assert verifiers.seconds(["own"], 2) == 5000
    rewards = verifiers.judge(replace(ASKED, verifier="own"), responses("a", "b"))
    assert [reward.reason for reward in rewards] == ["number 0", "number 1"]


class Missing(Together):
    """A verdict too few."""

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        return super().verify_group(prompt, responses[1:])


class Returns:
    """What is annotated as a reward need not be one."""

    def __init__(self, config: RewardConfig) -> None: ...

    def verify(self, prompt: Prompt, response: str) -> Reward:
        given: dict[str, object] = {"nothing": None, "number": 1.0, "nan": correct("", float("nan"))}
        return given[response]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("verifier", "text", "why"),
    [
        ("Missing", "a", "ValueError: '0 verdicts on 1 responses'"),
        ("Returns", "nothing", "AttributeError: .*'NoneType'"),
        ("Returns", "number", "AttributeError: .*'float'"),
        ("Returns", "nan", "ValueError: 'its score is nan'"),
    ],
)
def test_what_is_no_reward_is_a_failure(verifier: str, text: str, why: str) -> None:
    (reward,) = own(verifier).judge(replace(ASKED, verifier="own"), responses(text))
    assert (reward.score, reward.verdict) == (0.0, Verdict.FAILED)
    assert re.search(why, reward.reason), reward.reason


NUMBER = 3


def forgetful(config: RewardConfig) -> None:
    """Makes one and does not return it."""
    Together(config)


class Unfinished(GroupVerifier):
    """Says nowhere how long it takes."""

    def __init__(self, config: RewardConfig) -> None: ...

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        raise NotImplementedError


class Particular:
    def __init__(self, config: RewardConfig) -> None:
        raise ConfigError("reward.tolerance=0.01: too coarse")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "can't be imported: ValueError"),
        (
            "no_such_module:Polite",
            "can't be imported: ModuleNotFoundError: No module named 'no_such_module'; .*PYTHONPATH",
        ),
        (f"{__name__}:Rude", "can't be imported: AttributeError: .*Rude"),
        (f"{__name__}:NUMBER", "must be a class, or a function"),
    ],
)
def test_what_is_not_there_is_refused_by_its_key_whoever_asks_for_it(path: str, why: str) -> None:
    for find in (Verifiers, factories):
        with pytest.raises(ConfigError, match=rf"^reward\.verifiers\.polite='{re.escape(path)}': {why}"):
            find(named("polite", path))


def test_a_module_that_breaks_is_refused_by_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"^reward\.verifiers\.polite=.*: can't be imported: ZeroDivisionError"):
        Verifiers(named("polite", "breaks_on_import:Polite"))


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match=r"^reward\.verifiers\.math=.*: is called as another verifier"):
        Verifiers(named("math", f"{__name__}:Together"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("forgetful", r"^reward\.verifiers\.own=.*: makes no verifier, but NoneType"),
        ("Unfinished", r"^reward\.verifiers\.own=.*: can't be made from the config: TypeError: .*seconds"),
        ("Particular", rf"^reward\.tolerance=0\.01: too coarse \(verifier='own' of {re.escape(ASKED.id)}\)"),
    ],
)
def test_what_makes_no_verifier_is_refused_where_the_data_asks_for_it(name: str, why: str) -> None:
    verifiers = own(name)
    verifiers.check([replace(ASKED, verifier="math")])
    with pytest.raises(ConfigError, match=why):
        verifiers.check([replace(ASKED, verifier="own")])


def test_the_names_of_rows_include_ones_own() -> None:
    with pytest.raises(ConfigError, match=r"^verifier='polite': must be one of .*, own, "):
        own("Together").get("polite")


def test_a_run_with_other_verifiers_is_another_run() -> None:
    then, now = composed([]), composed(["reward.verifiers.polite=my_rewards:Polite"])
    assert differences(then, now) == {"reward.verifiers.polite": (None, "my_rewards:Polite")}
