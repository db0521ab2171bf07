"""Rollouts that engines have begun and not finished, as the stream knows them: by reference and in numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ring_ray.roles import RollBackError, RolloutRef
from ring_ray.types import Prompt, Rollout, RolloutStatus, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    rollout: RolloutRef  # as of its last return
    status: RolloutStatus
    start: RolloutRef | None  # without a token; None for one that was restored


class InFlight:
    """By prompt index, each with K responses.

    Attributes:
        lost: tokens that are gone with the nodes that held them.
    """

    def __init__(self, group_size: int) -> None:
        self.lost = 0
        self._fresh = RolloutStatus(new_tokens=0, in_flight_tokens=0, finished_tokens=0, unfinished=group_size)
        self._flights: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[int]:
        return iter(self._flights)

    def __getitem__(self, index: int) -> RolloutRef:
        return self._flights[index].rollout

    @property
    def unfinished(self) -> int:
        """Responses."""
        return sum(flight.status.unfinished for flight in self._flights.values())

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the responses that are not finished, and of those that are."""
        statuses = self.statuses().values()
        return sum(one.in_flight_tokens for one in statuses), sum(one.finished_tokens for one in statuses)

    def begin(self, prompt: Prompt) -> None:
        """K responses without a token."""
        sequences = (Sequence.start(prompt.token_ids),) * self._fresh.unfinished
        start = RolloutRef(Rollout(prompt=prompt, sequences=sequences))
        self._flights[prompt.index] = Flight(rollout=start, status=self._fresh, start=start)

    def grow(self, index: int, rollout: RolloutRef, status: RolloutStatus) -> None:
        self._flights[index] = replace(self._flights[index], rollout=rollout, status=status)

    def begin_again(self, index: int) -> None:
        """A rollout's tokens are gone: have others in their place. Raises `RollBackError` where it can't."""
        flight = self._flights[index]
        if flight.start is None:
            raise RollBackError(f"what prompt {index} had got before the run went on is lost", kind="data")
        self.lost += flight.status.in_flight_tokens + flight.status.finished_tokens
        self.grow(index, flight.start, self._fresh)

    def end(self, index: int) -> None:
        del self._flights[index]

    def rollouts(self) -> dict[int, RolloutRef]:
        return {index: flight.rollout for index, flight in self._flights.items()}

    def statuses(self) -> dict[int, RolloutStatus]:
        return {index: flight.status for index, flight in self._flights.items()}

    def restore(self, rollouts: Mapping[int, RolloutRef], statuses: Mapping[int, RolloutStatus], lost: int) -> None:
        self.lost = lost
        self._flights = {
            index: Flight(rollout=rollouts[index], status=status, start=None) for index, status in statuses.items()
        }
