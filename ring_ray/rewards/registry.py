"""Every verifier by the name that a row of data calls it."""

from collections.abc import Callable

from ring_ray.config import RewardConfig, require
from ring_ray.rewards.base import Verifier
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.rewards.math import MathVerifier

FACTORIES: dict[str, Callable[[RewardConfig], Verifier]] = {
    "integer": IntegerVerifier,
    "math": MathVerifier,
}


class Verifiers:
    """One verifier of each name, all with the run's time limit."""

    def __init__(self, config: RewardConfig) -> None:
        self._verifiers = {name: make(config) for name, make in FACTORIES.items()}

    def get(self, name: str) -> Verifier:
        """The verifier called ``name``; raises `ConfigError` that lists the names there are."""
        require(name in self._verifiers, "verifier", name, f"must be one of {', '.join(sorted(FACTORIES))}")
        return self._verifiers[name]
