"""A buffer beside its copy, for tests that a restored buffer behaves like the one that its state is of."""

from collections.abc import Callable
from typing import Any

from ring_ray.buffer import BufferNotReadyError, BufferState, RolloutBuffer
from ring_ray.checkpoint.codec import decode, encode
from ring_ray.config import AlgoConfig


class Twins:
    """A `RolloutBuffer`, and another one of which everything is asked as well; it must answer the same."""

    def __init__(self, algo: AlgoConfig, seed: int) -> None:
        self._algo, self._seed = algo, seed
        self.buffer, self.twin = RolloutBuffer(algo, seed), RolloutBuffer(algo, seed)

    def restore_twin(self) -> None:
        written = encode(self.buffer.state())
        self.twin = RolloutBuffer(self._algo, self._seed, decode(written, BufferState))
        assert encode(self.twin.state()) == written

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            copied, answer = (answer_of(getattr(one, name), *arguments) for one in (self.twin, self.buffer))
            if isinstance(answer, Exception):
                assert repr(copied) == repr(answer)
                raise answer
            assert encode(copied) == encode(answer)
            return answer

        return call


def answer_of(method: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the error that it raises."""
    try:
        return method(*arguments)
    except (ValueError, BufferNotReadyError) as error:
        return error
