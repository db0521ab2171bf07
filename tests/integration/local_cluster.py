"""A real Ray cluster, with a job server, on ports and in a directory of its own; several nodes share this machine."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil

from ring_ray.actors.job_server import free_ports
from tests.integration.commands import MARK, ROOT, command_line, marked

PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
READY_SECONDS = 60


@dataclass(frozen=True)
class LocalCluster:
    environment: dict[str, str]  # of commands that shall find it; a job's home directory is ``home``
    home: Path
    port: int  # that nodes join at
    nodes: "list[subprocess.Popen[str]]" = field(default_factory=list)  # the head first

    def add_node(self, cpus: int, *options: str) -> None:
        """Start a node that says it has ``cpus`` cores, with further ``options``, and wait until the others know it."""
        place = options or (f"--address=127.0.0.1:{self.port}",)
        start = ("ray", "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", *place)
        self.nodes.append(self.popen(*start))
        _wait_until_ready(self)

    def kill_node(self, index: int) -> None:
        """As when its power goes: all of its processes are gone at once."""
        session = self.nodes.pop(index).pid  # Ray has some of a node's processes adopted by others
        for process in psutil.process_iter():
            if os.getsid(process.pid) == session:
                process.kill()

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        """``command`` in the checkout, its output in a pipe."""
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, timeout: float = 200) -> "subprocess.CompletedProcess[str]":
        process = self.popen(*command)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, process.returncode, output)

    def listed(self, what: str, state: str) -> list[dict[str, Any]]:
        """What the cluster knows: "actors" in state "ALIVE", "placement_groups" in "CREATED"."""
        query = urlencode({"filter_keys": "state", "filter_predicates": "=", "filter_values": state, "detail": "true"})
        request = Request(
            f"{self.environment['RAY_ADDRESS']}/api/v0/{what}?{query}",
            headers={"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"},
        )
        with urlopen(request, timeout=60) as answer:
            return list(json.load(answer)["data"]["result"]["result"])

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Those of this cluster and its jobs whose command line matches."""
        ours = marked(self.environment[MARK])
        return [process for process in ours if re.search(pattern, command_line(process))]

    def wait_until_gone(self, pattern: str, timeout: float = 30) -> list[str]:
        """Command lines that match and are still there when the time is up."""
        _, alive = psutil.wait_procs(self.processes(pattern), timeout=timeout)
        return [command_line(process) for process in alive]


@contextmanager
def local_cluster(*cpus: int) -> Iterator[LocalCluster]:
    """Start a cluster, with token authentication, of nodes that say they have ``cpus`` cores each; by default one of 2.

    At the end assert that nothing of it is left.
    """
    directory = Path(tempfile.mkdtemp(prefix="ray-test-", dir="/tmp"))  # sockets in it: a longer path is too long
    (home := directory / "home").mkdir()
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    first, *others = cpus or (2,)
    environment = _environment(ports, home)
    if not others:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # whatever its name says: listen on loopback only
    cluster = LocalCluster(environment, home, ports["port"])
    head = ("--head", f"--temp-dir={directory / 'ray'}", *(f"--{name}={port}" for name, port in ports.items()))
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        cleanup.callback(_end, cluster)
        cluster.add_node(first, *head)
        for cores in others:
            cluster.add_node(cores)
        yield cluster


def _environment(ports: dict[str, int], home: Path) -> dict[str, str]:
    """No variable of Ray or W&B that is set here reaches the cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
    return kept | {
        MARK: secrets.token_hex(8),
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


def _wait_until_ready(cluster: LocalCluster) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _ready(cluster, len(cluster.nodes)):
        for node in cluster.nodes:
            assert node.poll() is None, node.stdout and node.stdout.read()
        assert time.monotonic() < deadline, "the cluster does not start"
        time.sleep(0.2)


def _ready(cluster: LocalCluster, nodes: int) -> bool:
    """Whether the job server answers and knows all nodes."""
    try:
        return len(cluster.listed("nodes", "ALIVE")) == nodes and cluster.run("ray", "job", "list").returncode == 0
    except OSError:  # nobody answers yet
        return False


def _end(cluster: LocalCluster) -> None:
    for node in reversed(cluster.nodes):
        node.send_signal(signal.SIGTERM)
        node.communicate(timeout=60)
    left = cluster.wait_until_gone("")
    for process in cluster.processes(""):
        process.kill()
    assert left == []
