import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from ring_ray.config import AlgoConfig, RunConfig, TrackingConfig, TrainConfig
from ring_ray.metrics import AccuracyInterval, coefficient_of_variation, flatten, wilson_interval
from ring_ray.tracking import JsonlSink, TerminalSink, Tracker, WandbSink
from ring_ray.types import BatchSummary, Ledger, StepMetrics, UpdateMetrics

CONTRACT = {
    "step": 3,
    "c3po/token_budget": 8192,
    "c3po/trained_tokens": 101,
    "c3po/carried_tokens": 102,
    "c3po/segments": 103,
    "c3po/groups": 104,
    "reward/mean": 105,
    "reward/std": 106,
    "rollout/response_length_mean": 107,
    "c3po/trained_response_length_mean": 108,
    "rollout/truncated_fraction": 110,
    "c3po/zero_advantage_fraction": 111,
    "c3po/staleness_mean": 112,
    "c3po/staleness_max": 113,
    "c3po/lost_response_length_mean": 109,
    "policy/loss": 201,
    "policy/grad_norm": 202,
    "policy/learning_rate": 203,
    "policy/entropy": 204,
    "policy/kl": 205,
    "policy/clip_fraction": 206,
    "policy/ratio_max": 207,
    "policy/behaviour_kl": 208,
    "policy/truncated_fraction": 209,
    "policy/masked_fraction": 210,
    "moe/balance_loss": 211,
    "moe/z_loss": 212,
    "perf/micro_batches": 213,
    "ledger/generated": 301,
    "ledger/in_flight": 302,
    "ledger/waiting": 303,
    "ledger/queued": 304,
    "ledger/trained": 305,
    "ledger/filtered": 306,
    "ledger/evicted": 307,
    "ledger/dropped": 308,
    "rollout/generated_tokens": 500,
    "perf/step_seconds": 4,
    "perf/wait_seconds": 1.5,
    "perf/update_seconds": 2.5,
    "perf/trained_tokens_per_second": 101 / 4,
    "perf/generated_tokens_per_second": 500 / 4,
}
"""Every name of metrics.jsonl with what `distinct_metrics` holds in the field that belongs to it."""


def distinct_metrics() -> StepMetrics:
    """A step in which no two fields are equal: in declaration order 101..., 201... and 301..."""

    def numbered(kind, first):
        return kind(**{field.name: first + i for i, field in enumerate(fields(kind))})

    return StepMetrics(
        step=3,
        batch=numbered(BatchSummary, 101),
        update=numbered(UpdateMetrics, 201),
        ledger=numbered(Ledger, 301),
        token_budget=8192,
        step_seconds=4.0,
        phase_seconds={"wait": 1.5, "update": 2.5},
        generated_tokens=500,
    )


def balanced_metrics(step: int, *, trained_tokens: int = 1000, grad_norm: float = 1.0) -> StepMetrics:
    """Step ``step`` of a run that trains 1000 tokens a step, samples 1100 and keeps the rest in the buffer."""
    ledger = Ledger(generated=1100 * step, queued=100 * step, trained=1000 * step)
    metrics = distinct_metrics()
    return replace(
        metrics,
        step=step,
        batch=replace(metrics.batch, trained_tokens=trained_tokens, reward_mean=0.25),
        update=replace(metrics.update, grad_norm=grad_norm, entropy=0.5),
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


def test_flatten_reads_every_metric_from_its_own_field():
    assert flatten(distinct_metrics()) == CONTRACT


def start_run(run_dir: Path, ending: str, **environment: str) -> subprocess.Popen[bytes]:
    """A process that tracks steps until ``ending``, a statement that sees ``tracker`` and ``step``."""
    program = f"""
import itertools, sys
from pathlib import Path
from ring_ray.tracking import Tracker
from tests.unit.test_tracking import balanced_metrics, run_config
with Tracker(run_config(Path(sys.argv[1]), wandb=sys.argv[2])) as tracker:
    for step in itertools.count(1):
        tracker.log(balanced_metrics(step))
        {ending}
"""
    command = [sys.executable, "-c", program, str(run_dir), "auto" if environment else "disabled"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | environment)


def test_a_killed_run_leaves_whole_lines(tmp_path):
    with start_run(tmp_path, "print(step, flush=True)") as process:
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
            tracker.summary({})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_values_that_are_not_finite_become_null(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log({"step": 1, "policy/loss": float("nan"), "policy/grad_norm": float("inf")})
    sink.close(failed=False)
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
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


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


# Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_refuses_impossible_counts():
    low, high = wilson_interval(29, 29)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 29))
    for successes, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
            wilson_interval(successes, n)


def test_coefficient_of_variation_is_undefined_around_zero_and_beyond_the_finite():
    assert coefficient_of_variation([4, 4, 4]) == 0
    assert coefficient_of_variation([0.0, 0.0]) is None
    assert coefficient_of_variation([1.0, float("inf")]) is None


def terminal_output(*, terminal: bool) -> str:
    stream = io.StringIO()
    sink = TerminalSink(3, Console(file=stream, force_terminal=terminal, width=100, color_system=None))
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


def test_on_a_terminal_there_is_also_a_bar():
    output = terminal_output(terminal=True)
    assert "3/3" in output
    assert "━" in output
    assert "step 3/3  reward 0.250" in output


def test_wandb_keeps_an_offline_run_inside_the_run_directory(tmp_path):
    # W&B writes the last records while its process ends, so the run has a process of its own.
    no_key = {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    with start_run(tmp_path, "break", **no_key) as process:
        assert process.wait() == 0
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    for name in (b"c3po/trained_tokens", b"perf/wait_seconds"):
        assert name in content


def test_failures_of_wandb_are_counted_said_once_and_stop_nothing(tmp_path, monkeypatch, caplog):
    class BrokenRun:
        def define_metric(self, *_, **__): ...

        def log(self, *_, **__):
            raise ConnectionError("the service is gone")

        finish = log

    monkeypatch.setattr("wandb.init", lambda **_: BrokenRun())
    sink = WandbSink(run_config(tmp_path, wandb="offline"))
    for step in (1, 2):
        sink.log({"step": step})
    sink.close(failed=True)
    assert sink.failures == 3
    assert [record.message for record in caplog.records] == [
        "W&B: the service is gone. The run goes on; metrics.jsonl has every step."
    ]


def test_a_wandb_that_does_not_start_stops_nothing(tmp_path, monkeypatch, caplog):
    def refuse(**_):
        raise OSError("no space left")

    monkeypatch.setattr("wandb.init", refuse)
    with Tracker(run_config(tmp_path, wandb="offline")) as tracker:
        tracker.log(balanced_metrics(1))
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    assert "no space left" in caplog.text
