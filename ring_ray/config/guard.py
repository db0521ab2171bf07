"""When training has collapsed, and what is done then."""

from dataclasses import dataclass

from ring_ray.config.check import require, require_one_of
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class GuardConfig:
    """Watches for a collapse of training, in means over the last steps; those that were skipped don't count."""

    action: str = key(
        "off",
        "At a collapse the run goes on (`off`), stops (`stop`), or goes back to the newest checkpoint from before the "
        "steps that show it (`rollback`).",
    )
    window: int = key(10, "Steps that a mean is taken over; before there are as many nothing is done.")
    min_entropy: float = key(
        0.02,
        "Below this policy/entropy, in nats per token, training has collapsed: hardly anything is left to chance; "
        "0 for no such limit.",
    )
    max_entropy: float | None = key(
        None, "Above this policy/entropy it has, too: the policy speaks at random; null for no such limit."
    )
    min_reward_fraction: float = key(
        0.5,
        "Below this share of the highest reward/mean so far it has, too, where that is above 0; 0 for no such limit.",
    )

    def __post_init__(self) -> None:
        require_one_of(("off", "stop", "rollback"), "guard.action", self.action)
        require(self.window >= 1, "guard.window", self.window, "must be at least 1")
        require(self.min_entropy >= 0, "guard.min_entropy", self.min_entropy, "must not be negative")
        require(
            self.max_entropy is None or self.max_entropy > self.min_entropy,
            "guard.max_entropy",
            self.max_entropy,
            f"must be above guard.min_entropy={self.min_entropy}, or null",
        )
        require(
            0 <= self.min_reward_fraction < 1,
            "guard.min_reward_fraction",
            self.min_reward_fraction,
            "must be at least 0 and below 1",
        )
