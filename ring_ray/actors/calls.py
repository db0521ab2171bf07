"""Remote calls: what Ray's types do not say of them, and which worker gets the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

from ray import ObjectRef

First = TypeVar("First")
Second = TypeVar("Second")
Worker = TypeVar("Worker")


def two_refs(call: ObjectRef[tuple[First, Second]]) -> tuple[ObjectRef[First], ObjectRef[Second]]:
    """The refs that a call of a method with ``num_returns=2`` really returns: the first can travel on unopened."""
    return cast("tuple[ObjectRef[First], ObjectRef[Second]]", call)


class LeastLoaded(Generic[Worker]):
    """Workers that share calls: each goes to the one with the fewest in progress."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._calls = [0] * len(workers)  # in progress

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """The worker for a call that lasts as long as the context."""
        index = self._calls.index(min(self._calls))
        self._calls[index] += 1
        try:
            yield self._workers[index]
        finally:
            self._calls[index] -= 1
