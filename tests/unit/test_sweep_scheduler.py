"""Which job starts when, which result is kept, and what a log tells."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.actors.placement import Bundle
from ring_ray.config import ConfigError, RoleResources
from ring_ray.sweep import State, accuracy
from ring_ray.sweep.results import LOG_LINES, error_in, has_result, last_step
from ring_ray.sweep.scheduler import PATIENCE_SECONDS, Sweep
from tests.unit.sweeps import SERVICES, Clock, Cluster, config, leave_result, make_job, states


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
    assert cluster.submitted == ["run 1 resume=never", "run 2"]  # one begins anew, the other goes on
    assert accuracy(tmp_path / "0") == 0.5
    assert accuracy(tmp_path / "1") is None  # what another run had left is gone
    assert last_step(tmp_path / "2") == {"step": 9}  # which the job goes on from, if it was saved


def test_a_result_does_not_depend_on_where_it_is_written_or_told(tmp_path: Path) -> None:
    run = config()
    leave_result(tmp_path / "a", run)
    run.run_dir, run.sync.directory, run.tracking.group = "elsewhere", "/shared", "group"
    run.resume, run.checkpoint.every = "never", 7
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


def test_an_amount_of_resources_is_read_by_rays_names() -> None:
    assert Bundle.of({"CPU": 4.0, "GPU": 2.0, "memory": 1e9}) == Bundle(4.0, 2.0)
    assert Bundle.of({"memory": 1e9}) == Bundle(0.0, 0.0)
