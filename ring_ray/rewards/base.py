"""What every verifier does."""

from typing import Protocol

from ring_ray.types import Prompt, Reward


class Verifier(Protocol):
    """Judges responses, one at a time, alone by ``prompt.answer``; the same response always earns the same."""

    def verify(self, prompt: Prompt, response: str) -> Reward:
        """A verdict within the verifier's time limit.

        The verdict is FAILED, never WRONG, where the fault is not the response's: a broken verifier, or an answer in
        the data that can't be read.
        """
