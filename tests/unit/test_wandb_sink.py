"""The mirror of a run in W&B, with a W&B that is slow, broken or away."""

import threading
from types import SimpleNamespace

import pytest

from ring_ray.tracking import Tracker
from ring_ray.tracking.wandb import WandbSink, wandb_mode
from tests.unit.test_tracking import balanced_metrics, read_jsonl, run_config


class StubRun:
    """A W&B run that is there, and takes everything."""

    offline, id = True, "1"
    settings = SimpleNamespace(sync_dir="runs/wandb/offline-run-1")

    def __init__(self) -> None:
        self.rows, self.exit_codes = [], []

    def define_metric(self, *_, **__): ...

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


def test_wandb_is_only_queued_for_and_waited_for_at_the_end(tmp_path, monkeypatch):
    stub, started = StubRun(), threading.Event()

    def slow(**_):
        assert started.wait(60)
        return stub

    monkeypatch.setattr("wandb.init", slow)
    said = []
    sink = WandbSink(run_config(tmp_path, wandb="offline"), "id1", said.append)
    for step in (1, 2):
        sink.log({"step": step})  # returns while W&B has not even begun
    assert stub.rows == []
    started.set()
    sink.close(failed=True)
    assert stub.rows == [{"step": 1}, {"step": 2}]
    assert stub.exit_codes == [1]
    assert said == ["W&B: this run is on disk only, send it with: wandb sync runs/wandb/offline-run-1"]


def test_failures_of_wandb_are_counted_said_once_and_stop_nothing(tmp_path, monkeypatch, caplog):
    class BrokenRun(StubRun):
        def log(self, row):
            raise ConnectionError("the service is gone")

        def finish(self, exit_code):
            raise ConnectionError("the service is gone")

    monkeypatch.setattr("wandb.init", lambda **_: BrokenRun())
    said = []
    sink = WandbSink(run_config(tmp_path, wandb="offline"), "id1", said.append)
    for step in (1, 2):
        sink.log({"step": step})
    sink.close(failed=True)
    assert sink.failures == 3
    assert [record.message for record in caplog.records if record.name.startswith("ring_ray")] == [
        "W&B: the service is gone. The run goes on; metrics.jsonl has every step."
    ]
    assert len(said) == 1  # how to send what there is


def test_a_wandb_that_does_not_start_stops_nothing(tmp_path, monkeypatch, caplog):
    def refuse(**_):
        raise OSError("no space left")

    monkeypatch.setattr("wandb.init", refuse)
    with Tracker(run_config(tmp_path, wandb="offline")) as tracker:
        tracker.log(balanced_metrics(1))
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1
    assert "no space left" in caplog.text


def test_wandb_online_without_a_key_says_so_and_stays_offline(tmp_path, monkeypatch, caplog):
    modes = []

    def init(mode, **_):
        modes.append(mode)
        return StubRun()

    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setattr("wandb.login", lambda **_: False)
    WandbSink(run_config(tmp_path, wandb="online"), "id1", lambda _: None).close(failed=False)
    assert modes == ["offline"]
    assert "`wandb login`" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "variable", "mode"),
    [
        ("auto", None, "auto"),
        ("auto", "disabled", "disabled"),
        ("auto", "OFFLINE", "offline"),
        ("auto", "shared", "auto"),
        ("online", "disabled", "online"),
    ],
)
def test_auto_is_what_wandbs_own_variable_says(monkeypatch, wanted, variable, mode):
    if variable is None:
        monkeypatch.delenv("WANDB_MODE", raising=False)
    else:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode(wanted) == mode


def test_a_run_belongs_to_the_entity_it_names(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("wandb.init", lambda **settings: given.update(settings) or StubRun())
    config = run_config(tmp_path, wandb="offline")
    config.tracking.entity = "team"
    WandbSink(config, "id1", lambda _: None).close(failed=False)
    assert (given["entity"], given["project"]) == ("team", "ring_ray")


def test_a_service_without_a_run_is_ended_as_well(tmp_path, monkeypatch):
    """Its exit hook would print a stack trace where the service is gone by then."""

    def broken(**_):
        raise ConnectionError("the service is gone")

    ended = []
    monkeypatch.setattr("wandb.init", broken)
    monkeypatch.setattr("wandb.teardown", lambda: ended.append(True))
    WandbSink(run_config(tmp_path, wandb="offline"), "id1", lambda _: None).close(failed=False)
    assert ended == [True]


def test_online_a_run_goes_on_under_its_id_and_offline_each_session_is_a_run_of_its_own(tmp_path, monkeypatch):
    given = []

    def refuse_online(**settings):
        given.append((settings["mode"], settings["id"], settings["resume"]))
        if settings["mode"] == "online":
            raise ConnectionError("no network")
        return StubRun()

    monkeypatch.setattr("wandb.init", refuse_online)
    monkeypatch.setattr("wandb.login", lambda **_: True)
    WandbSink(run_config(tmp_path, wandb="online"), "id1", lambda _: None).close(failed=False)
    assert given == [("online", "id1", "allow"), ("offline", None, None)]
