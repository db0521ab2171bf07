"""`hydra/launcher=ray_job`: what a sweep's command line becomes."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ring_ray import compose
from ring_ray.config import RunConfig
from ring_ray.sweep import JobRecord, State, SweepJob
from tests.unit.sweeps import leave_result


class Launches:
    """Stands in for `launch_sweep`: remembers its jobs, and says they are done, or failed where they say so."""

    def __init__(self) -> None:
        self.jobs, self.options = list[SweepJob](), dict[str, Any]()

    def __call__(self, jobs: Sequence[SweepJob], **options: Any) -> tuple[JobRecord, ...]:
        self.jobs, self.options = list(jobs), options
        return tuple(
            JobRecord(job, State.FAILED, "it broke") if "seed=9" in job.overrides else JobRecord(job, State.DONE)
            for job in jobs
        )


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    stand_in = Launches()
    monkeypatch.setattr("ring_ray.sweep.launch_sweep", stand_in)
    return stand_in


def multirun(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "-m", *arguments, "hydra/launcher=ray_job"])
    compose.main()


def test_the_launcher_makes_a_job_of_each_combination(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    multirun(
        monkeypatch, "algo=c3po,grpo", "seed=1,2", "train.steps=7", f"hydra.sweep.dir={tmp_path}/my-sweep",
        "hydra.launcher.max_parallel=2", "hydra.launcher.python=/opt/python",
    )  # fmt: skip
    assert launches.options == {"address": None, "working_dir": None, "max_parallel": 2, "poll_seconds": 2.0}
    assert [job.overrides for job in launches.jobs] == [
        (f"algo={algo}", f"seed={seed}", "train.steps=7") for algo in ("c3po", "grpo") for seed in (1, 2)
    ]
    job = launches.jobs[2]
    assert (job.number, job.name) == (2, "my-sweep 2")
    assert job.directory == tmp_path / "my-sweep" / "algo=grpo,seed=1,train.steps=7"
    assert isinstance(job.config, RunConfig)
    assert (job.config.algo.name, job.config.seed, job.config.train.steps) == ("grpo", 1, 7)
    assert job.config.run_dir == str(job.directory)
    words = shlex.split(job.command)
    assert words[words.index("exec") + 1] == "/opt/python"
    assert words[-7:] == [
        *job.overrides, "hydra.mode=RUN", f"hydra.run.dir='{job.directory}'", "tracking.group='my-sweep'",
        "tracking.job_number=2",
    ]  # fmt: skip


def run_of(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """What a job's command would run."""
    words, seen = shlex.split(job.command), list[RunConfig]()
    monkeypatch.setattr(sys, "argv", words[words.index("exec") + 2 :])
    monkeypatch.setattr("ring_ray.launch.launch", seen.append)
    compose.main()
    (run,) = seen
    return run


def test_what_a_job_is_given_composes_to_the_config_it_was_admitted_by(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    multirun(monkeypatch, "algo=c3po,grpo", "data.instruction='a, b'", f"hydra.sweep.dir={tmp_path}")
    (job, _) = launches.jobs
    run = run_of(job, monkeypatch)
    assert (run.tracking.group, run.tracking.job_number) == (tmp_path.name, 0)
    assert run.tracking.overrides == ["algo=c3po", "data.instruction='a, b'"]
    assert run.run_dir == str(job.directory)
    run.tracking = job.config.tracking
    assert run == job.config


def test_a_job_reads_the_config_files_of_the_sweep(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for directory, group, name, seed in (("a", "experiment", "mine", 5), ("b", "", "own", 0)):
        (tmp_path / directory / group).mkdir(parents=True)
        text = "defaults: [config, _self_]" if not group else f"# @package _global_\nseed: {seed}"
        (tmp_path / directory / group / f"{name}.yaml").write_text(f"{text}\ntrain: {{steps: 3}}\n")
    multirun(
        monkeypatch, f"--config-dir={tmp_path}/b", "--config-name=own", f"hydra.searchpath=[file://{tmp_path}/a]",
        "experiment=mine", "train.warmup_steps=1,2", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    for job in launches.jobs:
        assert run_of(job, monkeypatch).train.steps == 3
        assert run_of(job, monkeypatch).seed == 5


def test_a_job_whose_config_is_refused_is_passed_on_as_such(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    multirun(monkeypatch, "train.steps=0,1", f"hydra.sweep.dir={tmp_path}")
    refused, good = launches.jobs
    assert "train.steps=0" in str(refused.config)
    assert isinstance(good.config, RunConfig)


def test_a_failed_job_makes_the_sweep_fail_without_a_stack_trace(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        multirun(monkeypatch, "seed=8,9", f"hydra.sweep.dir={tmp_path}")
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert "job 1 failed: it broke" in errors
    assert "Traceback" not in errors


def test_in_one_process_each_run_of_a_sweep_knows_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("ring_ray.launch.launch", seen.append)
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "-m", "seed=3,4", f"hydra.sweep.dir={tmp_path}/by-seed"])
    compose.main()
    assert [(run.tracking.group, run.tracking.job_number, run.tracking.overrides) for run in seen] == [
        ("by-seed", 0, ["seed=3"]),
        ("by-seed", 1, ["seed=4"]),
    ]
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "seed=5", f"hydra.run.dir={tmp_path}/alone"])
    compose.main()
    assert (seen[2].tracking.group, seen[2].tracking.job_number, seen[2].tracking.overrides) == (None, None, ["seed=5"])


def test_optuna_maximizes_the_accuracy_on_held_out_prompts(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

    def launch(jobs: Sequence[SweepJob], **options: Any) -> tuple[JobRecord, ...]:
        for job in jobs:
            assert isinstance(job.config, RunConfig)
            leave_result(job.directory, job.config, 0.9 - abs(job.config.seed - 3) / 10)
        return launches(jobs, **options)

    monkeypatch.setattr("ring_ray.sweep.launch_sweep", launch)
    multirun(
        monkeypatch, "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=5",
        "hydra.sweeper.n_jobs=2", "hydra/sweeper/sampler=grid", "seed=1,2,3,4,5", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_params == {"seed": 3}
    assert [job.number for job in launches.jobs] == [4]  # the last of three batches
