"""The exercises that the mixture experiment learns from, and the command that writes them."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from jobs.make_mixture import main as make_mixture
from ring_ray.compose import composed
from ring_ray.data.demonstrations import demonstrations
from ring_ray.data.exercises import choices, instructions, programs
from ring_ray.data.source import load_prompts
from ring_ray.engines.tiny_model import make_tiny_tokenizer
from ring_ray.rewards.registry import FACTORIES
from tests.verifiers.cases import judge

TOKENIZER = make_tiny_tokenizer()


@pytest.mark.parametrize("exercises", [choices, instructions])
def test_worked_responses_are_right(exercises: Callable[[int, int], Iterator[dict[str, str]]]) -> None:
    rows = [*exercises(100, 0)]
    assert rows == [*exercises(100, 0)] != [*exercises(100, 1)]
    for row in rows:
        assert judge(row["verifier"], row["answer"], row["demonstration"]).score == 1.0, row
        assert judge(row["verifier"], row["answer"], "-").score == 0.0, row


def test_worked_programs_give_what_the_tests_expect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in programs(50, 0):
        source = row["demonstration"].strip("`\n")
        for test in json.loads(row["answer"])["tests"]:
            monkeypatch.setattr("sys.stdin", io.StringIO(test["input"]))
            exec(source, {})
            assert capsys.readouterr().out == test["output"], row


def test_exercises_need_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["make_mixture.py", str(file)])
    with pytest.raises(SystemExit):
        make_mixture()
    assert "file: is no directory" in capsys.readouterr().err


def test_the_experiment_trains_on_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_mixture.py", str(tmp_path), "--size", "60"])
    make_mixture()
    config = composed(["experiment=mixture", f"data.path={tmp_path}"])
    source = load_prompts(config, TOKENIZER, FACTORIES)
    assert {prompt.id for prompt in source.training} == source.demonstrations.keys()
    counts = Counter(source.next().domain for _ in range(80))
    assert counts == pytest.approx(dict.fromkeys(config.data.weights, 16), abs=3)
    for prompt, ids in islice(demonstrations(source, TOKENIZER, 0), 20):
        assert len(ids) <= config.rollout.max_response_tokens
        if prompt.domain != "code":  # needs the sandbox: tests/integration
            assert judge(prompt.verifier, prompt.answer, TOKENIZER.decode(ids[:-1])).score == 1.0
