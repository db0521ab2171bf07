"""Ray's job server: submit commands, watch them and stop them; on this machine where no cluster is named."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from tempfile import TemporaryFile
from typing import Any, Literal, TypeAlias

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import StateApiClient
from ray.util.state.common import ListApiOptions, StateResource
from ray.util.state.exception import RayStateApiException

JobState: TypeAlias = Literal["running", "succeeded", "failed", "stopped"]

STATES: dict[JobStatus, JobState] = {
    JobStatus.PENDING: "running",  # its environment is being made
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # whatever its name says
START_SECONDS = 120.0
AGENT_SECONDS = 120.0  # until the agent of a new node is up; Ray itself waits for it, 10 s each time that it is asked
MAX_NODES = 10_000  # the most that Ray lists


class JobServer:
    """The jobs of one cluster. Every call raises an OSError where the cluster does not answer."""

    def __init__(self, address: str, runtime_env: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """``runtime_env`` is Ray's: what the jobs run in. ``headers`` are those of each request."""
        self._runtime_env = dict(runtime_env)
        with _answered(address):
            self._client = JobSubmissionClient(address, headers=dict(headers))
        self._states = StateApiClient(address, headers={"Content-Type": "application/json", **headers})

    def nodes(self) -> list[dict[str, float]]:
        """What each node of the cluster has, by Ray's names."""
        alive = ListApiOptions(limit=MAX_NODES, filters=[("state", "=", "ALIVE")])
        with _answered("nodes"):
            nodes: Any = self._states.list(StateResource.NODES, alive, raise_on_missing_output=True)
        return [node.resources_total for node in nodes]

    def submit(self, job: str, command: str, name: str) -> None:
        """Start a shell command that takes no resources itself; nothing where ``job`` was started before.

        Raises RuntimeError where Ray refuses it.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(
                    submission_id=job, entrypoint=command, runtime_env=self._runtime_env, metadata={"job_name": name}
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # an earlier answer got lost
                    return
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            else:
                return

    def state(self, job: str) -> JobState:
        with _answered(job):
            return STATES[self._client.get_job_status(job)]

    def logs(self, job: str) -> str:
        """What the job printed; where it never ran, why."""
        try:
            log = self._client.get_job_logs(job)
        except RuntimeError:  # the node that ran it is gone
            log = ""
        with _answered(job):
            return log or self._client.get_job_info(job).message or ""

    def stop(self, job: str) -> None:
        """Have a job end; it has not yet when this returns."""
        with _answered(job):
            self._client.stop_job(job)


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """Ray's clients have an error of their own for an answer that is none."""
    try:
        yield
    except (RuntimeError, ValueError, AuthenticationError, RayStateApiException) as error:
        raise ConnectionError(f"{what}: {error}") from error


@contextmanager
def job_server(address: str | None, runtime_env: Mapping[str, Any]) -> Iterator[JobServer]:
    """The job server at ``address`` (or that of RAY_ADDRESS), else one started on this machine for as long as this.

    Raises ConnectionError where there is none.
    """
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray's clients heed more than what they are called with
    running = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if running:
        yield JobServer(running, runtime_env, {})
        return
    with _local_cluster(runtime_env) as server:
        yield server


@contextmanager
def _local_cluster(runtime_env: Mapping[str, Any]) -> Iterator[JobServer]:
    """A cluster of this machine, which listens on loopback only and asks callers for a token that only we know.

    `ray start` rather than ray.init, which leaves the port of the agent that runs jobs fixed: there may be another Ray.
    """
    token = secrets.token_hex(32)
    dashboard, client = free_ports(2)
    ports = (f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", "--dashboard-agent-listen-port=0")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    with TemporaryFile("w+") as output:
        head = subprocess.Popen(
            [*start, "--port=0", *ports],
            env=os.environ | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for us
        )
        try:
            server = _ready(f"http://127.0.0.1:{dashboard}", runtime_env, {"Authorization": f"Bearer {token}"}, head)
            if server is None:
                output.seek(0)
                raise ConnectionError(f"Ray does not start on this machine:\n{output.read().strip()}")
            yield server
        finally:
            head.terminate()
            head.wait()


def _ready(
    address: str, runtime_env: Mapping[str, Any], headers: Mapping[str, str], head: "subprocess.Popen[bytes]"
) -> JobServer | None:
    """The job server, once the dashboard answers and knows its node; None where ``head`` ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while head.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionError):  # not yet
            server = JobServer(address, runtime_env, headers)
            if server.nodes():
                return server
        time.sleep(0.2)
    return None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
