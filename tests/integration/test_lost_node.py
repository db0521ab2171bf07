"""Two nodes: one with a rollout engine dies under a run, which goes on, and uses the node that comes in its place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import wait_for
from tests.integration.local_cluster import LocalCluster, local_cluster
from tests.integration.test_faults import faults
from tests.integration.test_train import SMALL, assert_balanced, read_steps

STEPS = 400
# All but one of the engines fits on the first node: with half of 5 cores left, none on the second.
PLACES = ("cluster=disaggregated", "cluster.rollout.workers=2", "cluster.rollout.cpus=2", "cluster.policy.cpus=2")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(5, 2) as cluster:
        yield cluster


@pytest.mark.timeout(400)
def test_training_goes_on_while_a_node_is_away(cluster: LocalCluster, tmp_path: Path) -> None:
    address = f"cluster.address=127.0.0.1:{cluster.port}"
    run = cluster.popen(
        "python", "jobs/train.py", *SMALL, *PLACES, address, f"train.steps={STEPS}", f"hydra.run.dir={tmp_path}"
    )
    try:
        wait_for(run, "step 3/")
        cluster.kill_node(1)
        wait_for(run, "died, asked to")
        before = len(read_steps(tmp_path))
        wait_for(run, f"step {before + 5}/")
        assert faults(tmp_path) == []  # nothing has come in its place
        cluster.add_node(2)
        recovered = wait_for(run, "recovered in ")
        assert "rollout engine" in recovered
        after = len(read_steps(tmp_path))
        wait_for(run, f"step {after + 3}/")
    finally:
        run.terminate()
        run.communicate(timeout=100)
    assert [fault["kind"] for fault in faults(tmp_path)] == ["rollout"]
    steps = read_steps(tmp_path)
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert {step["c3po/trained_tokens"] for step in steps} == {1000}
    for step in steps:
        assert_balanced(step)
