"""The files of a cgroup that hold a worker's memory limit; here they are ordinary ones."""

import os
import subprocess
from pathlib import Path

import pytest

from ring_ray.config import ConfigError
from ring_ray.rewards.sandbox.cgroup import MemoryGroup


def test_a_worker_joins_before_it_starts_and_has_its_limit(tmp_path: Path) -> None:
    group = MemoryGroup(str(tmp_path), "worker")
    done = subprocess.run(group.joining(["/bin/sh", "-c", "echo $$"]), capture_output=True, text=True, check=True)
    assert (tmp_path / "worker" / "cgroup.procs").read_text() == done.stdout
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    group.limit(256 << 20)
    assert int((tmp_path / "worker" / "memory.max").read_text()) == (256 + 64) << 20
    (tmp_path / "worker" / "memory.events").write_text("low 0\nhigh 3\noom_kill 2\n")
    assert group.kills() == 2


def test_a_directory_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"reward.sandbox.cgroup='{tmp_path / 'none'}'.*memory controller"):
        MemoryGroup(str(tmp_path / "none"), "worker").joining([])


def test_a_group_that_has_ended_leaves_no_directory(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "worker")
    MemoryGroup(str(tmp_path), "worker").remove()
    assert not (tmp_path / "worker").exists()
