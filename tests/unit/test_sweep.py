"""Sweeps as jobs, with a cluster and a clock of the test's own."""

import io
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console

from ring_ray import compose
from ring_ray.actors.job_server import JobState
from ring_ray.actors.placement import Bundle
from ring_ray.config import ClusterConfig, ConfigError, RoleResources, RunConfig
from ring_ray.sweep import JobRecord, State, SweepJob, accuracy, command, launch_sweep
from ring_ray.sweep.launch import follow, interruptible
from ring_ray.sweep.results import LOG_LINES, error_in, has_result, last_step
from ring_ray.sweep.scheduler import PATIENCE_SECONDS, Sweep
from ring_ray.sweep.view import SweepView

SERVICES = 0.5  # cores of a run's buffer and reward worker, in a bundle of their own


def config(cpus: float = 1.0, **values: Any) -> RunConfig:
    """A run whose policy and engine take ``cpus`` cores together."""
    roles = {"policy": RoleResources(cpus=cpus - 0.25), "rollout": RoleResources(cpus=0.25)}
    return RunConfig(cluster=ClusterConfig(**roles), **values)


def make_job(number: int, run: RunConfig | ConfigError | None = None, directory: Path = Path("/nowhere")) -> SweepJob:
    return SweepJob(
        number=number,
        name=f"sweep {number}",
        overrides=(f"seed={number}",),
        directory=directory / str(number),
        command=f"run {number}",
        config=run or config(),
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """A job client whose jobs end when the test says so. While it is silent it hears, but does not answer."""

    def __init__(self, *cores: float) -> None:
        self.cores, self.submitted = cores, list[str]()
        self.states, self.log = dict[str, JobState](), dict[str, str]()  # by command
        self.commands = dict[str, str]()  # by job
        self.refused, self.silent = set[str](), False

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": cores, "memory": 1.0} for cores in self.cores]

    def submit(self, job: str, command: str, name: str) -> None:
        if command in self.refused:
            raise RuntimeError(f"refused {name}")
        self.commands[job] = command
        if command not in self.submitted:
            self.submitted.append(command)
            self.states[command] = "running"
        if self.silent:
            raise OSError("no answer")

    def state(self, job: str) -> JobState:
        if self.silent:
            raise OSError("no answer")
        return self.states[self.commands[job]]

    def logs(self, job: str) -> str:
        return self.log[self.commands[job]]

    def stop(self, job: str) -> None:
        self.log[self.commands[job]] = "asked to stop"
        if self.silent:
            raise OSError("no answer")

    def end(self, number: int, state: JobState = "succeeded", log: str = "") -> None:
        self.states[f"run {number}"], self.log[f"run {number}"] = state, log


def states(sweep: Sweep) -> list[str]:
    return [record.state.value for record in sweep.records]


def test_as_many_jobs_run_as_the_cluster_holds_and_the_next_when_one_ends() -> None:
    cluster = Cluster(3.0, 1.5)
    sweep = Sweep([make_job(number) for number in range(4)], cluster)
    sweep.advance()
    assert states(sweep) == ["running", "running", "running", "queued"]
    cluster.end(1)
    sweep.advance()
    assert states(sweep) == ["running", "done", "running", "running"]
    for number in (0, 2, 3):
        cluster.end(number)
    sweep.advance()
    assert not sweep.active
    assert cluster.submitted == ["run 0", "run 1", "run 2", "run 3"]


def test_a_small_job_starts_ahead_of_a_large_one_that_has_to_wait() -> None:
    cluster = Cluster(4.0)
    sweep = Sweep([make_job(0, config(2.0)), make_job(1, config(3.5)), make_job(2)], cluster)
    sweep.advance()
    assert states(sweep) == ["running", "queued", "running"]


def test_a_bundle_is_not_split_over_what_two_nodes_have_left() -> None:
    sweep = Sweep([make_job(number) for number in range(3)], Cluster(2.25, 2.25))
    sweep.advance()
    assert states(sweep) == ["running", "running", "queued"]  # 0.25 and 1.25 cores are left for bundles of 1 and 0.5


@given(
    cores=st.lists(st.sampled_from([1.5, 2.0, 3.3]), min_size=1, max_size=3),
    sizes=st.lists(st.sampled_from([0.3, 0.5, 0.7, 1.0, 1.4]), min_size=1, max_size=8),
    max_parallel=st.none() | st.integers(1, 3),
    data=st.data(),
)
def test_no_node_is_overbooked_nothing_waits_without_need_and_everything_ends(
    cores: list[float], sizes: list[float], max_parallel: int | None, data: st.DataObject
) -> None:
    cluster = Cluster(*cores)
    sweep = Sweep(
        [make_job(number, config(size)) for number, size in enumerate(sizes)], cluster, max_parallel=max_parallel
    )
    sweep.advance()
    while sweep.active:
        running = [record for record in sweep.records if record.state is State.RUNNING]
        assert 1 <= len(running) <= (max_parallel or len(sizes))
        for record in running:
            held = sum((amount.cpus for amount in record.held), start=0.0)
            assert held == pytest.approx(sizes[record.job.number] + SERVICES)
        for node, capacity in enumerate(cores):
            assert sum(record.held[node].cpus for record in running) <= capacity + 1e-9
        cluster.end(data.draw(st.sampled_from([record.job.number for record in running])))
        sweep.advance()
    assert all(record.state is not State.QUEUED for record in sweep.records)
    assert sum(record.state is State.DONE for record in sweep.records) == len(cluster.submitted)


def test_max_parallel_bounds_what_runs_at_a_time() -> None:
    cluster = Cluster(100.0)
    sweep = Sweep([make_job(number) for number in range(3)], cluster, max_parallel=2)
    sweep.advance()
    assert states(sweep) == ["running", "running", "queued"]
    cluster.end(0)
    sweep.advance()
    assert states(sweep) == ["done", "running", "running"]


def test_a_job_that_can_never_run_fails_at_once_and_the_others_go_on() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0, config(8.0)), make_job(1, ConfigError("algo.nope=1")), make_job(2)], cluster)
    assert states(sweep) == ["failed", "failed", "queued"]
    too_large, impossible, _ = sweep.records
    assert ["CPU", "8.5", "2"] in [line.split() for line in too_large.error.splitlines()]  # placement's table
    assert impossible.error == "algo.nope=1"
    sweep.advance()
    assert cluster.submitted == ["run 2"]


def test_the_reference_needs_room_only_where_it_is_spawned() -> None:
    run = config(1.0)
    run.cluster.reference = RoleResources(cpus=4.0)
    assert states(Sweep([make_job(0, run)], Cluster(2.0))) == ["queued"]
    run.algo.kl_coefficient = 0.1
    assert states(Sweep([make_job(0, run)], Cluster(2.0))) == ["failed"]


def test_a_failed_job_tells_why_and_does_not_stop_the_others() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(number) for number in range(3)], cluster)
    sweep.advance()
    cluster.end(0, "failed", "step 1\nerror: data.path=x.jsonl: no such file\n  at all\n")
    sweep.advance()
    cluster.end(1, "stopped")
    sweep.advance()
    assert states(sweep) == ["failed", "failed", "running"]
    assert sweep.records[0].error == "error: data.path=x.jsonl: no such file\n  at all"
    assert sweep.records[1].error == "it was stopped"


def test_a_refused_submission_fails_its_job_alone() -> None:
    cluster = Cluster(2.0)
    cluster.refused = {"run 0"}
    sweep = Sweep([make_job(0), make_job(1)], cluster)
    sweep.advance()
    assert states(sweep) == ["failed", "running"]
    assert sweep.records[0].error == "refused sweep 0"


def test_a_cluster_that_is_silent_for_a_while_is_waited_for() -> None:
    cluster, clock = Cluster(2.0), Clock()
    sweep = Sweep([make_job(0)], cluster, clock=clock)
    sweep.advance()
    cluster.silent = True
    clock.now += PATIENCE_SECONDS
    sweep.advance()
    assert states(sweep) == ["running"]
    cluster.silent = False
    sweep.advance()  # the patience begins anew
    cluster.silent = True
    clock.now += PATIENCE_SECONDS
    sweep.advance()
    clock.now += 1
    with pytest.raises(OSError, match="no answer"):
        sweep.advance()


def test_a_job_whose_submission_was_not_answered_is_started_once() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0)], cluster)
    cluster.silent = True
    sweep.advance()
    assert states(sweep) == ["queued"]
    cluster.silent = False
    sweep.advance()
    assert (states(sweep), cluster.submitted, len(cluster.commands)) == (["running"], ["run 0"], 1)


def test_every_job_is_asked_to_stop_and_those_that_were_not_heard_of_are_named() -> None:
    cluster = Cluster(4.0)
    sweep = Sweep([make_job(0), make_job(1)], cluster)
    sweep.advance()
    cluster.silent = True
    with pytest.raises(OSError, match=f"{sweep.records[0].id}.*{sweep.records[1].id}"):
        sweep.stop()
    assert cluster.log == {"run 0": "asked to stop", "run 1": "asked to stop"}


def test_a_stopped_sweep_starts_nothing_and_waits_for_what_runs() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0), make_job(1)], cluster)
    sweep.advance()
    sweep.stop()
    assert cluster.log == {"run 0": "asked to stop"}
    sweep.advance()
    assert sweep.active
    cluster.end(0, "stopped")
    sweep.advance()
    assert not sweep.active
    assert states(sweep) == ["failed", "queued"]
    assert cluster.submitted == ["run 0"]


def test_minutes_count_from_the_start_of_a_job_to_its_end() -> None:
    cluster, clock = Cluster(2.0), Clock()
    sweep = Sweep([make_job(0), make_job(1)], cluster, clock=clock)
    first, second = sweep.records
    assert sweep.minutes(first) is None
    clock.now = 60
    sweep.advance()
    clock.now = 240
    assert sweep.minutes(first) == 3
    cluster.end(0)
    sweep.advance()
    clock.now = 300
    assert (sweep.minutes(first), sweep.minutes(second)) == (3, 1)


def leave_result(directory: Path, run: RunConfig, value: float = 0.5) -> None:
    directory.mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(run), directory / "config.yaml")
    (directory / "summary.json").write_text(json.dumps({"accuracy": {"rl": {"value": value}}}))


def test_a_job_is_kept_if_its_directory_has_the_result_of_its_config(tmp_path: Path) -> None:
    leave_result(tmp_path / "0", config(seed=0))
    leave_result(tmp_path / "1", config(seed=7))  # the directory of job 1, but not its result
    leave_result(tmp_path / "2", config(seed=2))
    (tmp_path / "2" / "summary.json").unlink()  # interrupted
    (tmp_path / "2" / "metrics.jsonl").write_text('{"step": 9}\n')
    cluster = Cluster(100.0)
    sweep = Sweep([make_job(seed, config(seed=seed), tmp_path) for seed in range(3)], cluster)
    assert states(sweep) == ["kept", "queued", "queued"]
    sweep.advance()
    assert cluster.submitted == ["run 1", "run 2"]
    assert accuracy(tmp_path / "0") == 0.5
    assert accuracy(tmp_path / "1") is None  # what another run had left is gone
    assert last_step(tmp_path / "2") == {}


def test_a_result_does_not_depend_on_where_it_is_written_or_told(tmp_path: Path) -> None:
    run = config()
    leave_result(tmp_path / "a", run)
    run.run_dir, run.sync.directory, run.tracking.group = "elsewhere", "/shared", "group"
    assert has_result(run, tmp_path / "a")
    run.train.learning_rate = 2e-5
    assert not has_result(run, tmp_path / "a")
    assert not has_result(run, tmp_path / "b")


def test_the_newest_step_is_the_last_whole_line(tmp_path: Path) -> None:
    assert last_step(tmp_path) == {}
    lines = [json.dumps({"step": step, "padding": "x" * 1000}) for step in range(200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 2')
    assert last_step(tmp_path)["step"] == 199


def test_a_log_without_a_clear_error_gives_its_last_lines() -> None:
    assert error_in("\n".join(map(str, range(100)))).splitlines() == [str(n) for n in range(100 - LOG_LINES, 100)]
    assert error_in("") == ""


def test_the_command_survives_the_shell() -> None:
    overrides = ["hydra.run.dir='/a b/seed=1,algo=$x'", "model.path=it's"]
    here = command("/venv/bin/python", overrides, Path("/home/my project"))
    change, _, run = here.partition(" && ")
    assert shlex.split(change) == ["cd", "/home/my project"]
    assert shlex.split(run)[:2] == ["exec", "/venv/bin/python"]
    assert Path(shlex.split(run)[2]).samefile("jobs/train.py")
    assert shlex.split(run)[3:] == overrides
    assert shlex.split(command("python", overrides, None)) == ["exec", "python", "jobs/train.py", *overrides]


def test_without_a_terminal_every_change_is_one_line(tmp_path: Path) -> None:
    cluster, clock, output = Cluster(1.5), Clock(), io.StringIO()
    jobs = [make_job(0, directory=tmp_path), make_job(1, config(9.0), tmp_path)]
    sweep = Sweep(jobs, cluster, clock=clock)
    with SweepView(sweep, Console(file=output)) as view:
        view.show()
        sweep.advance()
        view.show()
        view.show()
        clock.now = 90
        leave_result(tmp_path / "0", config(), 0.625)
        (tmp_path / "0" / "metrics.jsonl").write_text('{"step": 100, "reward/mean": 0.75}\n')
        cluster.end(0)
        sweep.advance()
        view.show()
        assert view.summary() == "2 jobs: 1 done, 1 failed"
    lines = output.getvalue().splitlines()
    assert lines[0] == "job 0  queued  seed=0"
    assert lines[1] == "job 1  failed  seed=1"
    assert lines[2] == "job 1 failed:"
    assert lines[3] == "  the cluster can't hold this run"
    assert [line for line in lines if line.startswith("job 0")][1:] == [
        "job 0  running  seed=0  0.0 min",
        "job 0  done  seed=0  1.5 min  step 100/100  reward 0.750  accuracy 0.625",
    ]


def test_on_a_terminal_there_is_a_table(tmp_path: Path) -> None:
    leave_result(tmp_path / "0", config(), 0.625)
    output = io.StringIO()
    sweep = Sweep([make_job(0, directory=tmp_path), make_job(1)], Cluster(2.0))
    with SweepView(sweep, Console(file=output, force_terminal=True, width=120)) as view:
        view.show()
    for text in ("2 jobs: 1 queued, 1 kept", "overrides", "seed=1", "0.625"):
        assert text in output.getvalue()


def quiet_view(sweep: Sweep) -> SweepView:
    return SweepView(sweep, Console(quiet=True))


def test_an_error_of_the_sweep_leaves_no_job_running() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0)], cluster)

    def pause() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow(sweep, quiet_view(sweep), pause)
    assert cluster.log == {"run 0": "asked to stop"}


def test_an_interrupted_sweep_is_followed_until_its_jobs_have_ended() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0), make_job(1)], cluster)
    pauses = []

    def pause() -> bool:
        pauses.append(states(sweep))
        if len(pauses) == 3:
            cluster.end(0, "stopped")
        return len(pauses) == 1

    follow(sweep, quiet_view(sweep), pause)
    assert sweep.stopped
    assert len(pauses) == 3
    assert states(sweep) == ["failed", "queued"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_pause_and_nothing_else_until_it_comes_again(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible(1e-3) as pause:
        assert not pause()
    with interruptible(600.0) as pause:
        signal.raise_signal(number)
        assert pause()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


OPTIONS: dict[str, Any] = {"address": None, "working_dir": None, "max_parallel": None, "poll_seconds": 1.0}


@pytest.mark.parametrize(("option", "value"), [("max_parallel", 0), ("poll_seconds", 0.0)])
def test_an_option_that_makes_no_sense_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{option}={value}"):
        launch_sweep([make_job(0)], **(OPTIONS | {option: value}))


def test_jobs_that_would_write_over_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir='/nowhere/0'"):
        launch_sweep([make_job(0), make_job(0)], **OPTIONS)


def test_an_amount_of_resources_is_read_by_rays_names() -> None:
    assert Bundle.of({"CPU": 4.0, "GPU": 2.0, "memory": 1e9}) == Bundle(4.0, 2.0)
    assert Bundle.of({"memory": 1e9}) == Bundle(0.0, 0.0)


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
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "-m", "hydra/launcher=ray_job", *arguments])
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


def test_what_a_job_is_given_composes_to_the_config_it_was_admitted_by(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    multirun(monkeypatch, "algo=c3po,grpo", "data.instruction='a, b'", f"hydra.sweep.dir={tmp_path}")
    (job, _) = launches.jobs
    words = shlex.split(job.command)
    seen = []
    monkeypatch.setattr(sys, "argv", words[words.index("exec") + 2 :])
    monkeypatch.setattr("ring_ray.launch.launch", seen.append)
    compose.main()
    (run,) = seen
    assert (run.tracking.group, run.tracking.job_number) == (tmp_path.name, 0)
    assert run.tracking.overrides == ["algo=c3po", "data.instruction='a, b'"]
    assert run.run_dir == str(job.directory)
    run.tracking = job.config.tracking
    assert run == job.config


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
