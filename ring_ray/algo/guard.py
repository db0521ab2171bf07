"""Has training collapsed? Entropy that is gone or without bounds, or rewards far below what they were."""

from collections import deque
from dataclasses import dataclass

from ring_ray.config import GuardConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """What the means over the steps from ``first`` to ``last`` show."""

    first: int
    last: int
    finding: str  # what is past which limit, and the limit's key
    advice: str


class CollapseDetector:
    """Keeps means over the last `guard.window` steps, and the best mean reward so far."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._steps: deque[int] = deque(maxlen=config.window)
        self._entropies: deque[float] = deque(maxlen=config.window)
        self._rewards: deque[float] = deque(maxlen=config.window)
        self._best_reward = float("-inf")

    def observe(self, step: int, *, entropy: float, reward: float) -> Collapse | None:
        """What a step that was trained, and those before it, show; None where all is well.

        ``entropy`` is the policy's in nats per token, ``reward`` the step's mean reward.
        """
        self._steps.append(step)
        self._entropies.append(entropy)
        self._rewards.append(reward)
        if len(self._steps) < self._config.window:
            return None
        mean_reward = sum(self._rewards) / len(self._rewards)
        self._best_reward = max(self._best_reward, mean_reward)
        found = self._judge(sum(self._entropies) / len(self._entropies), mean_reward)
        return found and Collapse(first=self._steps[0], last=step, finding=found[0], advice=found[1])

    def _judge(self, entropy: float, reward: float) -> tuple[str, str] | None:
        """A finding and an advice, where one of the means is past its limit."""
        config, best = self._config, self._best_reward
        if entropy < config.min_entropy:
            return (
                f"policy/entropy {entropy:.4g} is below guard.min_entropy={config.min_entropy:g}",
                "raise algo.entropy_coefficient or algo.clip_range_high, or lower train.learning_rate",
            )
        if config.max_entropy is not None and entropy > config.max_entropy:
            return (
                f"policy/entropy {entropy:.4g} is above guard.max_entropy={config.max_entropy:g}",
                "lower algo.entropy_coefficient or train.learning_rate",
            )
        if best > 0 and reward < config.min_reward_fraction * best:
            return (
                f"reward/mean {reward:.4g} is below guard.min_reward_fraction={config.min_reward_fraction:g} of "
                f"{best:.4g}, the highest so far",
                "lower train.learning_rate, and look at the responses in rollouts.jsonl",
            )
        return None
