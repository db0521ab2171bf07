"""A batch in numbers, with what happened to rollouts while it came together."""

from dataclasses import dataclass, field

import numpy as np

from ring_ray.algo.budget import Selection, staleness_sum
from ring_ray.types import BatchSummary, DomainReward, Reward


@dataclass(slots=True)
class Window:
    """What happened since the last batch; lengths are response tokens."""

    rewards: dict[str, list[Reward]] = field(default_factory=dict)  # by domain
    dropped_rewards: dict[str, list[Reward]] = field(default_factory=dict)  # of groups whose verifier failed
    response_lengths: list[int] = field(default_factory=list)
    lost_response_lengths: list[int] = field(default_factory=list)  # one entry each time that a response lost tokens
    truncated: list[bool] = field(default_factory=list)  # per response
    zero_advantage: list[bool] = field(default_factory=list)  # per group

    def else_of(self, earlier: "Window") -> "Window":
        """This window, with what ``earlier`` saw wherever nothing completed or was scored since."""
        lengths_from = self if self.response_lengths else earlier
        rewards_from = self if self.rewards else earlier
        return Window(
            rewards=rewards_from.rewards,
            dropped_rewards=self.dropped_rewards,
            zero_advantage=rewards_from.zero_advantage,
            response_lengths=lengths_from.response_lengths,
            truncated=lengths_from.truncated,
            lost_response_lengths=self.lost_response_lengths,
        )


def summarize(selection: Selection, window: Window, *, version: int, carry: bool) -> BatchSummary:
    """Of the tokens in ``selection``, which is not empty and is trained to get from ``version`` to the next.

    Without ``carry`` the tail of the cut response does not come back. The order in which groups arrived is nothing to
    the numbers, not even to their last digit.
    """
    taken = selection.taken
    trained_tokens = sum(map(len, taken))
    rewards = {
        domain: sorted(window.rewards[domain], key=lambda reward: reward.score) for domain in sorted(window.rewards)
    }
    scores = [reward.score for domain in rewards.values() for reward in domain]
    return BatchSummary(
        trained_tokens=trained_tokens,
        carried_tokens=selection.tail_tokens if carry else 0,
        segments=len(taken),
        groups=len({segment.prompt_index for segment in taken}),
        reward_mean=_mean(scores),
        reward_std=float(np.std(scores)),
        domains={
            domain: DomainReward.of(rewards.get(domain, []), window.dropped_rewards.get(domain, []))
            for domain in sorted(rewards.keys() | window.dropped_rewards.keys())
        },
        response_length_mean=_mean(window.response_lengths),
        trained_response_length_mean=_mean([len(segment.sequence) for segment in taken]),
        lost_response_length_mean=_mean(window.lost_response_lengths),
        truncated_fraction=_mean(window.truncated),
        zero_advantage_fraction=_mean(window.zero_advantage),
        staleness_mean=sum(staleness_sum(segment, version) for segment in taken) / trained_tokens,
        staleness_max=version - min(int(segment.sequence.versions[segment.start]) for segment in taken),
    )


def _mean(values: list[float] | list[int] | list[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
