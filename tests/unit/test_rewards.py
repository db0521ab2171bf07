import asyncio
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import ConfigError, JudgeConfig, RewardConfig, RewardModelConfig
from ring_ray.rewards.base import AnswerError, GroupVerifier, Response, correct
from ring_ray.rewards.boxed import last_boxed
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.rewards.math import MathVerifier, normalize_percent
from ring_ray.rewards.registry import FACTORIES, Verifiers
from ring_ray.types import Prompt, Reward, Verdict

MATH = MathVerifier(RewardConfig())
INTEGER = IntegerVerifier(RewardConfig())


def prompt(answer: str) -> Prompt:
    ids = np.zeros(1, np.int32)
    return Prompt(index=0, id="d.jsonl:7", domain="d", text="?", token_ids=ids, verifier="v", answer=answer)


ASKED = replace(prompt("3"), verifier="integer")


def responses(*texts: str) -> list[Response]:
    return [Response(text, len(text)) for text in texts]


def math(answer: str, response: str) -> Reward:
    return MATH.verify(prompt(answer), response)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{3}", "3"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} then}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{\\{}}", r"\\{}"),
        (r"\boxed{}", ""),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1} and then \boxed{2", None),
        ("42", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integer_scores_equality(expected: int, given: int) -> None:
    reward = INTEGER.verify(prompt(str(expected)), f"so \\boxed{{{given}}}")
    assert reward.score == float(given == expected)
    assert reward.verdict is (Verdict.CORRECT if given == expected else Verdict.WRONG)


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"\boxed{12} hm \boxed{ +012 }", Verdict.CORRECT),
        (r"\boxed{12} hm \boxed{13}", Verdict.WRONG),
        ("12", Verdict.UNPARSABLE),
        (r"\boxed{12", Verdict.UNPARSABLE),
        (r"\boxed{12.0}", Verdict.UNPARSABLE),
        (r"\boxed{5+7}", Verdict.UNPARSABLE),
        (rf"\boxed{{{'9' * 100_000}}}", Verdict.UNPARSABLE),
    ],
)
def test_integer_verdicts(response: str, verdict: Verdict) -> None:
    reward = INTEGER.verify(prompt("12"), response)
    assert reward.verdict is verdict
    assert reward.score == float(verdict is Verdict.CORRECT)
    assert len(reward.reason) < 200


def test_integer_never_blames_the_response_for_the_data() -> None:
    with pytest.raises(AnswerError, match=r"d\.jsonl:7: .*'twelve' is not an integer"):
        INTEGER.verify(prompt("twelve"), r"\boxed{12}")


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("3", "3"),
        ("3", "3."),
        (r"\frac12", "0.5"),
        (r"$\frac{1}{2}$", "1/2"),
        (r"\boxed{7}", "7"),
        ("x^2+1", "1+x^2"),
        ("1,000", "1000"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
    ],
)
def test_math_accepts_equal_answers(answer: str, given: str) -> None:
    reward = math(answer, rf"thus \boxed{{{given}}}")
    assert (reward.score, reward.verdict) == (1.0, Verdict.CORRECT), reward.reason


@pytest.mark.parametrize(
    ("answer", "given", "equal"),
    [
        (r"12\%", "0.12", True),
        ("0.12", r"12\%", True),
        ("3/25", "12%", True),
        (r"12\%", r"12 \%", True),
        (r"12\%", "12 percent", True),
        (r"12\%", r"12\text{ percent}", True),
        (r"-12.5\%", "-1/8", True),
        (r"1,200\%", "12", True),
        (r"\frac{1}{2}\%", "0.005", True),
        (r"10\%, 20\%", r"\frac{1}{10}, \frac{1}{5}", True),
        (r"(3,4\%)", "(3, 0.04)", True),
        (r"12\%", "12", False),
        ("12", r"12\%", False),
        (r"12\%", "1.2", False),
    ],
)
def test_a_percentage_is_its_value(answer: str, given: str, equal: bool) -> None:
    assert math(answer, rf"\boxed{{{given}}}").verdict is (Verdict.CORRECT if equal else Verdict.WRONG)


def test_normalize_percent_leaves_other_text_alone() -> None:
    for latex in (r"\frac{12}{100}", "x^2 + 3", r"\%", "percentile 5"):
        assert normalize_percent(latex) == latex


def test_math_verdicts_of_wrong_and_unreadable_responses() -> None:
    assert math("3", r"\boxed{4}").verdict is Verdict.WRONG
    assert math("3", r"first \boxed{3}, no: \boxed{4}").verdict is Verdict.WRONG
    assert math("4", r"first \boxed{3} no \boxed{4}").verdict is Verdict.CORRECT
    for response in ("the answer is 3", r"\boxed{3", r"\boxed{}", r"\boxed{\frac{}"):
        reward = math("3", response)
        assert (reward.score, reward.verdict) == (0.0, Verdict.UNPARSABLE), response


def test_math_never_blames_the_response_for_the_data() -> None:
    reward = math(r"\frac{", r"\boxed{3}")
    assert reward.verdict is Verdict.FAILED
    assert "d.jsonl:7" in reward.reason
    assert r"\\frac{" in reward.reason


def test_math_off_the_main_thread_fails_instead_of_scoring_zero() -> None:
    rewards: list[Reward] = []
    thread = threading.Thread(target=lambda: rewards.append(math("3", r"\boxed{3}")))
    thread.start()
    thread.join()
    assert rewards[0].verdict is Verdict.FAILED
    assert "main thread" in rewards[0].reason


@pytest.mark.parametrize(
    "given", [r"9^{9^{9^{9}}}", r"3^{3^{18}}", r"(10^{10})!", r"(10^{7})!", r"\binom{10^9}{10^8}", r"2^{-10^{9}}"]
)
def test_math_computes_no_number_that_no_time_limit_could_end(given: str) -> None:
    reward = math("3", rf"\boxed{{{given}}}")
    assert (reward.score, reward.verdict) == (0.0, Verdict.UNPARSABLE)
    assert "too many digits" in reward.reason


@pytest.mark.parametrize(
    ("answer", "given"),
    [("2^{1000}", "4^{500}"), ("100!", "100 \\cdot 99!"), ("(-1)^{10^{9}}", "1"), ("x^{100}", "x^{100}")],
)
def test_math_computes_large_numbers(answer: str, given: str) -> None:
    assert math(answer, rf"\boxed{{{given}}}").verdict is Verdict.CORRECT


@pytest.mark.parametrize("given", [r"\sum_{n=1}^{10^9} \frac{1}{n^n}"])
def test_math_stops_at_its_time_limit_and_goes_on_afterwards(given: str) -> None:
    verifier = MathVerifier(RewardConfig(timeout_seconds=0.3))
    reward = verifier.verify(prompt("3"), rf"\boxed{{{given}}}")
    assert (reward.score, reward.verdict) == (0.0, Verdict.TIMED_OUT)
    assert "reward.timeout_seconds=0.3" in reward.reason
    assert math("3", r"\boxed{3}").verdict is Verdict.CORRECT


# The time limit may strike inside a callback of the garbage collector, which Python only warns of; it strikes again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_math_blames_the_data_for_an_answer_that_takes_too_long_to_read() -> None:
    verifier = MathVerifier(RewardConfig(timeout_seconds=0.3))
    nested = "(" * 400 + "3" + ")" * 400
    assert verifier.verify(prompt(nested), r"\boxed{3}").verdict is Verdict.FAILED
    assert verifier.verify(prompt("3"), rf"\boxed{{{nested}}}").verdict is Verdict.TIMED_OUT


def test_registry() -> None:
    nobody = "http://127.0.0.1:1"
    served = RewardConfig(
        judge=JudgeConfig(url=nobody, model="tiny"), model=RewardModelConfig(url=nobody, model="tiny")
    )
    verifiers = Verifiers(served)
    for name in FACTORIES:
        assert verifiers.get(name) is verifiers.get(name)
    assert isinstance(verifiers.get("integer"), IntegerVerifier)
    assert isinstance(verifiers.get("math"), MathVerifier)
    with pytest.raises(ConfigError, match=r"verifier='nothing': must be one of arc_1d, .*integer, .*math"):
        verifiers.get("nothing")


class Breaks:
    def verify(self, prompt: Prompt, response: str) -> Reward:
        raise RuntimeError("out of order")


def test_a_verifier_that_breaks_has_failed_and_is_never_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTORIES, "integer", lambda config: Breaks())
    (reward,) = Verifiers(RewardConfig()).judge(ASKED, responses(r"\boxed{3}"))
    assert (reward.score, reward.verdict) == (0.0, Verdict.FAILED)
    assert "d.jsonl:7: RuntimeError: 'out of order'" in reward.reason


def test_a_verdict_says_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((10.0, 10.25))
    monkeypatch.setattr("ring_ray.rewards.registry.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    (reward,) = Verifiers(RewardConfig()).judge(ASKED, responses(r"\boxed{3}"))
    assert (reward.verdict, reward.seconds) == (Verdict.CORRECT, 0.25)


class Together(GroupVerifier):
    """Judges at once; ``broken`` where it can't."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.events = broken, list[str]()

    def start(self) -> None:
        self.events.append("start")
        if self.broken == "start":
            raise ConfigError("nothing to judge with: apt install it")

    def check(self, prompt: Prompt) -> None:
        self.events.append(f"check {prompt.answer}")
        if self.broken == "check":
            raise AnswerError(f"{prompt.id}: no such language")

    def close(self) -> None:
        self.events.append("close")

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        if self.broken == "verify":
            raise RuntimeError("out of order")
        self.events.append(f"judge {len(responses)}")
        return [Reward(score=1.0, verdict=Verdict.CORRECT, reason=response.text) for response in responses]

    def seconds(self, responses: int) -> float:
        return 1000.0 * responses


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    verifier = Together()
    monkeypatch.setitem(FACTORIES, "integer", lambda config: verifier)
    return verifier


def test_a_verifier_that_judges_at_once_gets_all_responses(together: Together) -> None:
    rewards = Verifiers(RewardConfig()).judge(ASKED, responses("a", "b", "c"))
    assert [reward.reason for reward in rewards] == ["a", "b", "c"]
    assert together.events == ["judge 3"]
    together.broken = "verify"
    failed = Verifiers(RewardConfig()).judge(ASKED, responses("a", "b"))
    assert [reward.verdict for reward in failed] == [Verdict.FAILED] * 2


def test_a_sandbox_that_breaks_under_one_response_judges_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class BreaksOnce:
        def __init__(self, sandbox: object, config: object) -> None: ...

        async def judge(self, problem: object, source: str) -> Reward:
            if source == "first\n":
                raise RuntimeError("a worker does not start")
            await asyncio.sleep(0)  # still under way when the first has failed
            return correct("passes")

    monkeypatch.setattr("ring_ray.rewards.code.Sandbox", lambda config: AsyncExitStack())
    monkeypatch.setattr("ring_ray.rewards.code.Judge", BreaksOnce)
    asked = replace(ASKED, verifier="code", answer='{"tests": [{"input": "", "output": "1"}]}')
    verifiers = Verifiers(RewardConfig())
    first, second, none = verifiers.judge(asked, responses("```\nfirst\n```", "```\nsecond\n```", "no code"))
    verifiers.close()
    assert (first.verdict, first.reason) == (Verdict.FAILED, "RuntimeError: 'a worker does not start'")
    assert (second.verdict, none.verdict) == (Verdict.CORRECT, Verdict.UNPARSABLE)


def test_only_what_the_data_asks_for_is_made_and_started_and_checked(together: Together) -> None:
    verifiers = Verifiers(RewardConfig())
    verifiers.check([replace(ASKED, verifier="science")])
    verifiers.start(["science"])
    verifiers.close()
    assert together.events == []
    verifiers.start(["integer"])
    verifiers.check([ASKED])
    verifiers.close()
    assert together.events == ["start", "check 3", "close"]


def test_what_can_not_be_judged_is_refused(together: Together) -> None:
    together.broken = "start"
    with pytest.raises(ConfigError, match="apt install it"):
        Verifiers(RewardConfig()).start(["integer"])
    together.broken = "check"
    with pytest.raises(ConfigError, match=r"d\.jsonl:7: no such language"):
        Verifiers(RewardConfig()).check([ASKED])


def test_the_time_of_a_rollout_is_that_of_its_slowest_verifier(together: Together) -> None:
    verifiers = Verifiers(RewardConfig(timeout_seconds=1.0))
    assert verifiers.seconds(["math"], 8) == 32.0
    assert verifiers.seconds(["math", "integer"], 8) == 8000.0


@pytest.mark.parametrize(
    ("answer", "given", "verdict"),
    [
        (r"5\text{ cm}", "5", Verdict.CORRECT),
        (r"5\text{ cm}", "5 cm", Verdict.CORRECT),
        (r"5\text{ cm}", r"50\text{ mm}", Verdict.CORRECT),
        (r"5\text{ cm}", r"5\text{ m}", Verdict.WRONG),
        (r"5\text{ cm}", "5 m", Verdict.WRONG),
        (r"5\text{ cm}", "6 cm", Verdict.WRONG),
        (r"5\text{ cm}", r"5\text{ cm}^2", Verdict.WRONG),
        (r"1\text{ h}", r"60\text{ min}", Verdict.CORRECT),
        (r"\frac12\text{ m}", r"50\text{ cm}", Verdict.CORRECT),
        ("5", r"5\text{ apples}", Verdict.CORRECT),
        ("5 cm", "5 m", Verdict.WRONG),
        ("5 cm", "50 mm", Verdict.CORRECT),
        (r"2\text{ L}", r"2000\text{ ml}", Verdict.CORRECT),
        (r"5\text{ L}", r"5\text{ ml}", Verdict.WRONG),
        (r"2\text{ h } 30\text{ min}", "2", Verdict.WRONG),
        (r"10\text{ m} \times 5\text{ m}", "10", Verdict.WRONG),
        (r"(\text{C})", r"(\text{C})", Verdict.CORRECT),
        (r"P(\text{A})", r"P(\text{A})", Verdict.CORRECT),
    ],
)
def test_units_are_converted_and_never_ignored(answer: str, given: str, verdict: Verdict) -> None:
    assert math(answer, rf"\boxed{{{given}}}").verdict is verdict


@pytest.mark.parametrize(
    ("answer", "given", "equal"),
    [
        ("1, 2", "2, 1", True),
        ("x=1 or x=2", "1, 2", True),
        (r"1 \text{ and } 2", r"\{2, 1\}", True),
        (r"\pm 2", "2, -2", True),
        ("1, 2", "1", False),
        ("1", "1, 2", False),
        (r"\{1,2\}", r"\{1,2,3\}", False),
        (r"\{1,2\}", r"\{1,3\}", False),
        (r"\emptyset", r"\{\}", True),
        ("(1,2)", "(2,1)", False),
        (r"\{(1,2),(3,4)\}", "(3,4), (1,2)", True),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", True),
        (r"(-\infty,1)\cup(2,\infty)", r"(3,\infty)\cup(-\infty,1)", False),
        (r"\left(\frac{1}{2},3\right]", "(0.5,3]", True),
        ("[0,1]", "[0,1)", False),
        ("[1,2)", "(1,2]", False),
        ("x>3", r"(3,\infty)", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", True),
        (r"\begin{pmatrix}1/2&2\end{pmatrix}", r"\begin{pmatrix}0.5&2\end{pmatrix}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\4&3\end{pmatrix}", False),
    ],
)
def test_sets_intervals_matrices_and_several_answers(answer: str, given: str, equal: bool) -> None:
    assert math(answer, rf"\boxed{{{given}}}").verdict is (Verdict.CORRECT if equal else Verdict.WRONG)


def test_a_digit_is_no_command() -> None:
    assert math(r"\frac{2}{5}", r"\boxed{\frac{2}{5}\7}").verdict is Verdict.UNPARSABLE
    matrix = r"\begin{pmatrix}1\\2\end{pmatrix}"
    assert math(matrix, rf"\boxed{{{matrix}}}").verdict is Verdict.CORRECT
