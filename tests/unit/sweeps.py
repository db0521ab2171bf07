"""A sweep's jobs, with a cluster and a clock of the test's own."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ring_ray.actors.job_server import JobState
from ring_ray.config import ClusterConfig, ConfigError, RoleResources, RunConfig
from ring_ray.sweep import SweepJob
from ring_ray.sweep.scheduler import Sweep

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


def leave_result(directory: Path, run: RunConfig, value: float = 0.5) -> None:
    directory.mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(run), directory / "config.yaml")
    (directory / "summary.json").write_text(json.dumps({"accuracy": {"rl": {"value": value}}}))
