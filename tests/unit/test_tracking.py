import io
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from ring_ray.config import AlgoConfig, RunConfig, TrackingConfig, TrainConfig
from ring_ray.metrics import AccuracyInterval, flatten
from ring_ray.tracking import Tracker
from ring_ray.tracking.files import JsonlFile
from ring_ray.tracking.terminal import TerminalSink
from ring_ray.types import (
    BatchSummary,
    DomainReward,
    Ledger,
    Reward,
    RolloutSample,
    StepMetrics,
    UpdateMetrics,
    Verdict,
)


def distinct_metrics() -> StepMetrics:
    """A step in which no two fields are equal: in declaration order 101..., 201... and 301..."""

    def numbered(kind, first):
        return kind(**{field.name: first + i for i, field in enumerate(fields(kind))})

    domains = {
        "math": DomainReward(mean=0.75, accuracy=0.5, failures=3, seconds_p50=0.25, seconds_p99=0.375),
        "code": DomainReward(mean=0.125, accuracy=0.0625, failures=4, seconds_p50=0.625, seconds_p99=0.875),
    }
    return StepMetrics(
        step=3,
        batch=replace(numbered(BatchSummary, 101), domains=domains),
        update=numbered(UpdateMetrics, 201),
        ledger=numbered(Ledger, 301),
        token_budget=8192,
        step_seconds=4.0,
        phase_seconds={"wait": 1.5, "update": 2.5},
        generated_tokens=500,
        memory_bytes={"update/policy": 2 * 2**30},
    )


def sample(response: str = "2 \\boxed{4}", score: float = 1.0) -> RolloutSample:
    return RolloutSample(
        prompt_index=8,
        domain="math",
        prompt="What is 2 + 2?",
        response=response,
        reward=Reward(score=score, verdict=Verdict.CORRECT, reason="4 = 4"),
        tokens=9,
        first_version=1,
        last_version=2,
        truncated=False,
    )


def balanced_metrics(step: int, *, trained_tokens: int = 1000, grad_norm: float = 1.0) -> StepMetrics:
    """Step ``step`` of a run that trains 1000 tokens a step, samples 1100 and keeps the rest in the buffer."""
    ledger = Ledger(generated=1100 * step, queued=100 * step, trained=1000 * step)
    metrics = distinct_metrics()
    return replace(
        metrics,
        step=step,
        batch=replace(metrics.batch, trained_tokens=trained_tokens, reward_mean=0.25),
        update=replace(metrics.update, skipped=step == 2, grad_norm=grad_norm, entropy=0.5),
        ledger=ledger,
        token_budget=1000,
    )


def run_config(run_dir: Path, wandb: str = "disabled", steps: int = 3) -> RunConfig:
    return RunConfig(
        seed=7,
        algo=AlgoConfig(token_budget=1000),
        run_dir=str(run_dir),
        train=TrainConfig(steps=steps),
        tracking=TrackingConfig(wandb=wandb, progress=False),
    )


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_jsonl_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_rollouts_are_written_with_what_became_of_them(tmp_path):
    with Tracker(run_config(tmp_path)) as tracker:
        tracker.rollouts(3, [sample(), sample(response="½", score=float("nan"))])
        tracker.rollouts(4, [])
    first, second = read_jsonl(tmp_path / "rollouts.jsonl")
    assert first == {
        "step": 3,
        "prompt_index": 8,
        "domain": "math",
        "prompt": "What is 2 + 2?",
        "response": "2 \\boxed{4}",
        "tokens": 9,
        "first_version": 1,
        "last_version": 2,
        "truncated": False,
        "score": 1.0,
        "verdict": "correct",
        "reason": "4 = 4",
        "seconds": 0.0,
        "carried": True,
    }
    assert (second["response"], second["score"]) == ("½", None)
    assert list(second) == list(first)


def test_every_sink_hears_every_number_and_is_closed(tmp_path):
    class Recorder:
        def __init__(self) -> None:
            self.heard, self.failed = [], []

        def log(self, values):
            self.heard.append(dict(values))

        def close(self, *, failed):
            self.failed.append(failed)

    sink = Recorder()
    tracker = Tracker(run_config(tmp_path), sinks=[sink])
    tracker.note({"sft/loss": 2.0})
    tracker.log(distinct_metrics())
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError
    assert sink.heard[0] == {"sft/loss": 2.0}
    assert sink.heard[1].items() >= flatten(distinct_metrics()).items()
    assert sink.failed == [True]


ENDLESS = """
import itertools, sys
from pathlib import Path
from ring_ray.tracking import Tracker
from tests.unit.test_tracking import balanced_metrics, run_config
with Tracker(run_config(Path(sys.argv[1]))) as tracker:
    for step in itertools.count(1):
        tracker.log(balanced_metrics(step))
        print(step, flush=True)
"""


def test_a_killed_run_leaves_whole_lines(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE) as process:
        while process.stdout.readline() != b"50\n":
            assert process.poll() is None
        process.kill()
    steps = [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert len(steps) >= 50  # each was on disk before the next began
    assert steps == list(range(1, len(steps) + 1))


def test_a_fresh_run_leaves_nothing_of_an_earlier_one(tmp_path):
    for steps in (3, 1):
        with Tracker(run_config(tmp_path)) as tracker:
            assert not (tmp_path / "summary.json").exists()
            tracker.note({"sft/step": 1, "sft/loss": 2.0})  # not a step, so not in metrics.jsonl
            for step in range(1, steps + 1):
                tracker.log(balanced_metrics(step))
                tracker.rollouts(step, [sample()])
            tracker.summary({})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == len(read_jsonl(tmp_path / "rollouts.jsonl")) == 1


def test_values_that_are_not_finite_become_null(tmp_path):
    file = JsonlFile(tmp_path / "metrics.jsonl")
    file.append({"step": 1, "policy/loss": float("nan"), "policy/grad_norm": float("inf")})
    file.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "policy/loss": None, "policy/grad_norm": None}]


def test_summary(tmp_path):
    with Tracker(run_config(tmp_path)) as tracker:
        for step, trained_tokens in enumerate((990, 1000, 1010), 1):
            tracker.log(balanced_metrics(step, trained_tokens=trained_tokens, grad_norm=step))
        tracker.summary({"base": AccuracyInterval.of(0, 10), "rl": AccuracyInterval.of(15, 50)})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.pop("wall_seconds") > 0
    assert summary.pop("trained_tokens_cv") == pytest.approx((200 / 3) ** 0.5 / 1000)
    assert summary.pop("grad_norm_cv") == pytest.approx((2 / 3) ** 0.5 / 2)
    accuracy = summary.pop("accuracy")
    assert list(accuracy) == ["base", "sft", "rl"]
    assert accuracy["sft"] is None
    assert accuracy["rl"] == pytest.approx({"value": 0.3, "n": 50, "low": 0.191033, "high": 0.437505}, abs=1e-5)
    assert summary == {
        "algo": "c3po",
        "seed": 7,
        "steps": 3,
        "token_budget": 1000,
        "trained_tokens_min": 990,
        "trained_tokens_max": 1010,
        "ledger_balanced": True,
        "skipped_steps": 1,
    }
    files = ["faults.jsonl", "metrics.jsonl", "rollouts.jsonl", "summary.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_summary_tells_of_one_step_whose_ledger_did_not_balance(tmp_path):
    with Tracker(run_config(tmp_path)) as tracker:
        for step in (1, 2, 3):
            metrics = balanced_metrics(step)
            lost_tokens = int(step == 2)
            ledger = replace(metrics.ledger, generated=metrics.ledger.generated + lost_tokens)
            tracker.log(replace(metrics, ledger=ledger))
        assert not tracker.summary({}).ledger_balanced


def test_summary_needs_a_step(tmp_path):
    with Tracker(run_config(tmp_path)) as tracker, pytest.raises(ValueError, match="empty"):
        tracker.summary({})
    assert not (tmp_path / "summary.json").exists()


def test_a_run_that_goes_on_keeps_what_it_reported_up_to_its_checkpoint(tmp_path):
    config = run_config(tmp_path)
    with Tracker(config) as tracker:
        for step in (1, 2, 3):
            tracker.log(replace(balanced_metrics(step), step=step))
            tracker.rollouts(step, [sample(response=f"response {step}")])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward')  # it was killed while it wrote
    before = read_jsonl_lines(tmp_path / "metrics.jsonl")[:2]

    with Tracker(config, steps=2, wandb_id="ab12") as tracker:
        assert tracker.wandb_id == "ab12"
        assert tracker.steps == 2
        for step in (3, 4):
            tracker.log(replace(balanced_metrics(step), step=step))
        summary = tracker.summary({})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert read_jsonl_lines(tmp_path / "metrics.jsonl")[:2] == before
    assert [row["response"] for row in read_jsonl(tmp_path / "rollouts.jsonl")] == ["response 1", "response 2"]
    assert summary.steps == 4
    assert summary.wall_seconds >= sum(row["perf/step_seconds"] for row in rows[:2]) > 0
    with Tracker(config) as tracker:
        assert (tracker.steps, (tmp_path / "metrics.jsonl").read_text()) == (0, "")


def terminal_output(*, terminal: bool, progress: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None)
    sink = TerminalSink(3, console, progress=progress)
    sink.say("cold [start]")
    sink.log({"sft/step": 1, "sft/loss": 2.25})
    sink.log({"sft/step": 2, "sft/loss": 2.0})
    sink.log({"accuracy/sft": 0.3125})
    for step in (1, 2, 3):
        sink.log(flatten(balanced_metrics(step)))
    sink.close(failed=False)
    return stream.getvalue()


def test_without_a_terminal_there_is_one_line_a_step():
    lines = terminal_output(terminal=False).splitlines()
    assert lines[0] == "cold [start]"
    assert lines[1] == "sft/step 1  sft/loss 2.25"  # the next of its kind comes too soon
    assert lines[2] == "accuracy/sft 0.3125"
    assert re.fullmatch(
        r"step 1/3  reward 0\.250  trained 1,000  carried 102  entropy 0\.500  250 tokens/s  eta -", lines[3]
    )
    assert re.match(r"step 3/3 .* eta 0:00:00$", lines[5])
    assert len(lines) == 6


@pytest.mark.parametrize("terminal", [False, True])
def test_without_progress_only_stages_are_told(terminal):
    assert terminal_output(terminal=terminal, progress=False) == "cold [start]\n"


def test_on_a_terminal_there_is_also_a_bar():
    output = terminal_output(terminal=True)
    assert "3/3" in output
    assert "━" in output
    assert "step 3/3  reward 0.250" in output
