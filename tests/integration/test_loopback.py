"""A run that starts Ray for itself can't be reached from other machines, and ends cleanly on SIGTERM."""

import ipaddress
import signal
from pathlib import Path

import psutil

from tests.integration.commands import Command
from tests.integration.test_train import SMALL


def test_a_local_run_listens_on_loopback_only(tmp_path: Path) -> None:
    command = Command(
        "jobs/train.py", *SMALL, "train.steps=500", "sft.enabled=never", "cluster.policy.workers=2",
        "cluster.policy.cpus=0.25", "sync.transport=broadcast", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    command.wait_for("step 1/500")
    pids = {process.pid for process in command.descendants()}
    listening = {
        (connection.laddr.ip, connection.laddr.port, connection.pid)
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }
    command.process.send_signal(signal.SIGTERM)
    run = command.finish()
    assert run.status == 130, run.output
    assert "Traceback" not in run.output
    assert run.left_over == []
    assert (tmp_path / "report.html").exists()
    assert listening
    assert {place for place in listening if not is_loopback(place[0])} == set()


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
