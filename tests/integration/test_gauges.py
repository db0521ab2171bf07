"""The run's numbers in what Prometheus reads from a Ray node."""

import math
import re
import time
import urllib.request
from collections.abc import Iterator

import pytest
import ray

from ring_ray.actors.cluster import ray_session
from ring_ray.actors.gauges import RayGauges
from ring_ray.config import ClusterConfig
from ring_ray.metrics import flatten, gauge_name
from tests.unit.test_tracking import distinct_metrics


@pytest.fixture
def node() -> Iterator[str]:
    """Address of the node's metrics."""
    with ray_session(ClusterConfig()):
        (alive,) = ray.nodes()
        yield f"http://{alive['NodeManagerAddress']}:{alive['MetricsExportPort']}/metrics"


def served(address: str, run: str) -> dict[str, float]:
    """Value by name of what is tagged with ``run``."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    lines = re.findall(r"^(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, tags, value in lines if f'run="{run}"' in tags}


def test_the_node_serves_every_number_of_the_last_step(node: str) -> None:
    values = flatten(distinct_metrics()) | {"sft/loss": 2.0, "reward/Géométrie/mean": 0.5}
    gauges = RayGauges("übung")
    expected = {f"ray_{gauge_name(name)}": value for name, value in values.items()}
    deadline = time.monotonic() + 60
    seen: dict[str, float] = {}
    while not seen.keys() >= expected.keys() and time.monotonic() < deadline:
        gauges.log(values | {"policy/undefined": math.nan})
        time.sleep(0.5)
        seen = served(node, "?bung")
    assert sorted(expected.keys() - seen.keys()) == []
    assert seen == pytest.approx(expected)
    gauges.close(failed=False)


def test_without_ray_nothing_is_emitted_and_nothing_started() -> None:
    gauges = RayGauges("übung")
    gauges.log({"step": 1})
    gauges.close(failed=False)
    assert not ray.is_initialized()
