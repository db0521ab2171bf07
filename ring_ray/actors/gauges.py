"""The run's numbers among Ray's own metrics, where Prometheus finds them and Grafana shows them."""

import math

import ray
from ray.util.metrics import Gauge

from ring_ray.metrics import Values, gauge_name


class RayGauges:
    """A gauge for each number, named by `gauge_name` and tagged with the run. Without Ray nothing is emitted.

    Ray serves a gauge for some seconds after it was set: long enough for a Prometheus that looks every 15.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run.encode("ascii", "replace").decode()}  # Ray takes no other characters
        self._gauges = dict[str, Gauge]()

    def log(self, values: Values) -> None:
        if not ray.is_initialized():
            return
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            if name not in self._gauges:
                self._gauges[name] = Gauge(gauge_name(name), tag_keys=("run",))
            self._gauges[name].set(value, tags=self._tags)

    def close(self, *, failed: bool) -> None:
        """Ray drops a gauge when its process ends."""
        self._gauges.clear()
