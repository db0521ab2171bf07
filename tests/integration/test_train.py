"""The main job, small: real Ray, vLLM and DeepSpeed from the command line."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import Command, train

SMALL = (
    "train.steps=3",
    "sft.max_steps=4",
    "sft.probe_after=4",
    "sft.probe_every=4",
    "sft.probe_prompts=8",
    "evaluation.prompts=16",
    "algo.token_budget=1000",
    "algo.groups_per_step=3",
    "rollout.max_response_tokens=24",
    "tracking.wandb=disabled",
)

OFFLINE = "tracking.wandb=offline"  # after SMALL: the later value counts

CONTRACT = [
    "step",
    "c3po/token_budget",
    "c3po/trained_tokens",
    "c3po/carried_tokens",
    "ledger/generated",
    "ledger/in_flight",
    "ledger/waiting",
    "ledger/queued",
    "ledger/trained",
    "ledger/filtered",
    "ledger/evicted",
    "ledger/dropped",
    "policy/loss",
    "policy/grad_norm",
    "policy/entropy",
    "policy/kl",
    "policy/clip_fraction",
    "moe/balance_loss",
    "moe/z_loss",
    "reward/mean",
    "rollout/response_length_mean",
    "perf/step_seconds",
    "perf/trained_tokens_per_second",
]


def read_steps(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_balanced(step: dict[str, float]) -> None:
    places = ("in_flight", "waiting", "queued", "trained", "filtered", "evicted", "dropped")
    assert step["ledger/generated"] == sum(step[f"ledger/{place}"] for place in places)


def test_c3po_with_a_reference_and_two_ranks(tmp_path: Path) -> None:
    run = train(
        *SMALL, f"hydra.run.dir={tmp_path}", "algo.kl_coefficient=0.001", "cluster.policy.workers=2", OFFLINE,
        "cluster.policy.cpus=0.25", "cluster.reward.workers=2", "cluster.reward.cpus=0.1",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    steps = read_steps(tmp_path)
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert all(isinstance(step[name], int | float) for name in CONTRACT)
        assert step["c3po/trained_tokens"] == step["c3po/token_budget"] == 1000
        assert_balanced(step)
    assert steps[0]["policy/kl"] == pytest.approx(0, abs=1e-5)  # the first step starts from the reference itself
    assert steps[2]["policy/kl"] > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["trained_tokens_min"] == summary["trained_tokens_max"] == summary["token_budget"] == 1000
    assert summary["ledger_balanced"] is True
    assert summary["steps"] == 3
    assert set(summary["accuracy"]) == {"base", "sft", "rl"}
    assert summary["accuracy"]["rl"]["n"] == 16
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert list((tmp_path / "model").glob("*.safetensors"))


def test_by_turns_with_two_engines_and_replayed_routing(tmp_path: Path) -> None:
    """Every transfer goes through shared memory and is verified, from the cold start's probe to the last save."""
    run = train(
        *SMALL, f"hydra.run.dir={tmp_path}", "cluster=colocated", "sync.verify_weights=true", "sync.bucket_mib=1",
        "algo.replay_routing=true", "algo.behaviour=recomputed", "algo.correction=icepop", "train.zero_stage=3",
        "cluster.policy.workers=2", "cluster.policy.cpus=0.2", "cluster.rollout.workers=2", "cluster.rollout.cpus=0.2",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    steps = read_steps(tmp_path)
    assert len(steps) == 3
    for step in steps:
        assert step["c3po/trained_tokens"] == 1000
        assert_balanced(step)
        # Asleep, the engines give back their cache of 2 x 64 MiB and their weights, as far as they had used them.
        assert step["memory/update/rollout_gib"] < step["memory/sync/rollout_gib"]
        # In fp32 and through the same experts the two engines agree; what is left are the versions in between.
        assert step["policy/behaviour_kl"] < 1e-2
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"]["rl"]["n"] == 16


def test_apart_with_an_engine_of_two_processes(tmp_path: Path) -> None:
    run = train(
        *SMALL, f"hydra.run.dir={tmp_path}", "cluster=disaggregated", "sync.verify_weights=true", "sft.enabled=never",
        "rollout.tensor_parallel=2", "rollout.keep_cache=true", "cluster.reference.workers=2",
        "cluster.reference.cpus=0.1",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    steps = read_steps(tmp_path)
    assert [step["c3po/trained_tokens"] for step in steps] == [1000, 1000, 1000]
    for step in steps:
        assert_balanced(step)
    assert not [name for name in steps[0] if name.startswith("memory/")]


def test_grpo_on_a_users_file_and_model(tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tmp_path / "model"
    assert Command("jobs/make_model.py", str(model)).finish().status == 0
    run = train(
        *SMALL, f"hydra.run.dir={tmp_path / 'run'}", "algo=grpo", "data=jsonl", f"data.path={data}",
        f"model.path={model}", "evaluation.prompts=2",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    steps = read_steps(tmp_path / "run")
    assert [step["c3po/groups"] for step in steps] == [3, 3, 3]
    assert len({step["c3po/trained_tokens"] for step in steps}) > 1
    for step in steps:
        assert_balanced(step)


def test_a_sweep_in_one_process(tmp_path: Path) -> None:
    run = train(
        "-m", *SMALL, "sft.enabled=never", "evaluation.prompts=2", OFFLINE, "seed=0,1",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
    )  # fmt: skip
    assert run.status == 0, run.output
    assert run.left_over == []
    summaries = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/summary.json"))]
    assert [(summary["seed"], summary["steps"]) for summary in summaries] == [(0, 3), (1, 3)]


@pytest.mark.parametrize(
    ("moment", "sft"), [("evaluation: base", "always"), ("cold start", "always"), ("step 2/500", "never")]
)
def test_interrupt_ends_cleanly(tmp_path: Path, moment: str, sft: str) -> None:
    command = Command(
        "jobs/train.py", *SMALL, OFFLINE, "train.steps=500", "sft.max_steps=40", f"sft.enabled={sft}",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    command.wait_for(moment)
    command.interrupt()
    run = command.finish()
    assert run.status == 130, run.output
    assert "Traceback" not in run.output
    assert run.left_over == []
    assert (tmp_path / "report.html").exists() == (moment == "step 2/500")
