"""Which job of a sweep starts when. Plain Python: a test drives it with a client and a clock of its own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from ring_ray.actors.job_server import JobState
from ring_ray.actors.placement import Bundle, PlacementError, check, first_fit, plan
from ring_ray.config import ConfigError, RunConfig
from ring_ray.sweep.results import error_in, has_result

PATIENCE_SECONDS = 120.0  # a busy head node does not answer for a while; the jobs go on all the same


class JobClient(Protocol):
    """Runs shell commands on a cluster. Every call raises an OSError where the cluster does not answer."""

    def nodes(self) -> list[dict[str, float]]:
        """What each node has, by Ray's names: {"CPU": 8.0, "GPU": 1.0}."""

    def submit(self, job: str, command: str, name: str) -> None:
        """Start a command under the id ``job``, once, however often it is asked. RuntimeError where it is refused."""

    def state(self, job: str) -> JobState: ...

    def logs(self, job: str) -> str: ...

    def stop(self, job: str) -> None:
        """Have a job end, without waiting for it."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    KEPT = "kept"  # its result is there from an earlier sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepJob:
    """One run of a sweep."""

    number: int  # hydra.job.num
    name: str
    overrides: tuple[str, ...]  # its own, in Hydra's syntax
    directory: Path  # where its results go; absolute
    command: str  # for a shell
    config: RunConfig | ConfigError  # what is run, or why it can't be


@dataclass(slots=True)
class JobRecord:
    """A job and what became of it."""

    job: SweepJob
    state: State = State.QUEUED
    error: str = ""  # why it failed
    bundles: tuple[Bundle, ...] = ()  # what its actors need
    id: str = ""  # of the client's job, which is there once it was submitted
    held: tuple[Bundle, ...] = ()  # of each node, while it runs
    started: float | None = None  # seconds, by the sweep's clock
    ended: float | None = None

    def fail(self, error: str) -> None:
        self.state, self.error = State.FAILED, error.strip()


class Sweep:
    """Starts jobs in order as the cluster has room for them, a small one ahead of a large one that has to wait.

    What the running jobs hold and what is free add up to what the nodes had when the sweep began.
    """

    def __init__(
        self,
        jobs: Sequence[SweepJob],
        client: JobClient,
        *,
        max_parallel: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Jobs that have their result are kept, those that can never run fail at once."""
        self._client, self._max_parallel, self._clock = client, max_parallel, clock
        nodes = client.nodes()
        self._free = tuple(map(Bundle.of, nodes))
        self._answered = clock()
        self.stopped = False
        self.records = tuple(_record(job, nodes) for job in jobs)

    @property
    def active(self) -> bool:
        """Whether there is something to wait for."""
        return bool(self._in(State.RUNNING) or (self._in(State.QUEUED) and not self.stopped))

    def advance(self) -> None:
        """See once how the running jobs are, and start those that have room now.

        Raises OSError where the cluster has not answered for `PATIENCE_SECONDS`.
        """
        for record in self._in(State.RUNNING):
            with self._patience():
                self._look_at(record)
        if self.stopped:
            return
        for record in self._in(State.QUEUED):
            if self._max_parallel is not None and len(self._in(State.RUNNING)) >= self._max_parallel:
                return
            left = first_fit(record.bundles, self._free)
            if left is not None:
                with self._patience():
                    self._start(record, left)

    def stop(self) -> None:
        """Start nothing any more and have what runs end: `advance` until nothing is `active`.

        Raises OSError, with the jobs that may still run, where the cluster did not answer for some.
        """
        self.stopped = True
        unheard = []
        for record in (*self._in(State.RUNNING), *self._in(State.QUEUED)):
            if not record.id:  # never submitted; a queued one that was may run, its answer lost
                continue
            try:
                self._client.stop(record.id)
            except OSError as error:
                unheard.append(f"{record.id} ({error})")
        if unheard:
            raise ConnectionError(f"these jobs may still run: {', '.join(unheard)}")

    def minutes(self, record: JobRecord) -> float | None:
        """For how long a job has run; None if it has not."""
        if record.started is None:
            return None
        return ((self._clock() if record.ended is None else record.ended) - record.started) / 60

    def _in(self, state: State) -> list[JobRecord]:
        return [record for record in self.records if record.state is state]

    def _start(self, record: JobRecord, left: tuple[Bundle, ...]) -> None:
        if not record.id:
            # Chosen here: a job whose submission was accepted, but not answered, must not be started again.
            record.id = f"{record.job.name.replace(' ', '-')}-{token_hex(4)}"
        try:
            self._client.submit(record.id, _command(record.job), record.job.name)
        except RuntimeError as error:
            record.fail(str(error))
            return
        (record.job.directory / "summary.json").unlink(missing_ok=True)  # from now on it is this job's
        self._answered = self._clock()
        record.held = tuple(free - rest for free, rest in zip(self._free, left, strict=True))
        record.state, record.started, self._free = State.RUNNING, self._clock(), left

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if self._clock() - self._answered > PATIENCE_SECONDS:
                raise

    def _look_at(self, record: JobRecord) -> None:
        state = self._client.state(record.id)
        log = self._client.logs(record.id) if state == "failed" else ""
        self._answered = self._clock()
        if state == "running":
            return
        if state == "succeeded":
            record.state = State.DONE
        else:
            record.fail("it was stopped" if state == "stopped" else error_in(log))
        record.ended = self._clock()
        self._free = tuple(free + held for free, held in zip(self._free, record.held, strict=True))


def _command(job: SweepJob) -> str:
    """A run that was stopped goes on; one that came to its end was another config's, or it would have been kept."""
    return f"{job.command} resume=never" if (job.directory / "summary.json").exists() else job.command


def _record(job: SweepJob, nodes: Sequence[Mapping[str, float]]) -> JobRecord:
    record = JobRecord(job)
    if isinstance(job.config, ConfigError):
        record.fail(str(job.config))
    elif has_result(job.config, job.directory):
        record.state = State.KEPT
    else:
        layout = plan(job.config.cluster, job.config.optional_roles)
        record.bundles = layout.bundles
        try:
            check(layout, nodes)
        except PlacementError as error:
            record.fail(str(error))
    return record
