"""The two protocols behind which the engines sit."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from ring_ray.engines.weights import Parcel
from ring_ray.types import FloatArray, Sequence, TokenBatch, UpdateMetrics


class RolloutEngine(Protocol):
    """Generates. One `generate` call is one sequence; many run at a time and the engine batches them."""

    async def generate(self, sequence: Sequence, seed: int | None = None) -> Sequence:
        """Continue ``sequence`` until it finishes or the engine is interrupted.

        ``seed`` is that of its random numbers, in [0, 2^63); without one they are the engine's, as they come.

        Returns the sequence with its new tokens, each with its log-prob under the current weights at sampling
        temperature and with the current policy version. ``finish_reason`` is "unfinished" after an interruption;
        passing the result in again resumes it. While the engine is interrupted, returns ``sequence`` unchanged.
        """

    async def interrupt(self, *, sleep: bool = False) -> None:
        """Make every `generate` in progress return what it has; returns once no token can be sampled any more.

        With ``sleep`` the memory of the weights and of the cache is then given back; `receive` and `resume` take it
        again.
        """

    async def receive(self, parcel: Parcel) -> None:
        """Copy some of the new weights into place. Interrupts first if the caller has not."""

    async def resume(self, version: int | None = None) -> None:
        """Accept work again after `interrupt`; ``version`` is that of the weights, if all of them were received.

        An engine whose weights slept can only be resumed with new ones.
        """

    async def checksums(self) -> dict[str, str]:
        """Of every tensor, by its checkpoint name, as `weights.checksum` has it. For an engine that is interrupted."""

    async def ping(self) -> None:
        """Return when the engine's processes have answered."""

    async def close(self) -> None:
        """End the engine and its processes. Idempotent."""


class TrainEngine(Protocol):
    """Trains. Every rank is given the same batch, takes its own share, and returns the same metrics."""

    def update(self, batch: TokenBatch, reference_logprobs: tuple[FloatArray, ...] | None) -> UpdateMetrics:
        """One optimizer step over the whole batch.

        ``reference_logprobs`` holds, for each segment of the batch, the reference policy's log-probs of its tokens
        [stop - start]; None where the KL coefficient is 0.
        """

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters under their Hugging Face checkpoint names, on the training device.

        Collective: every rank must go through all of it, in step. A tensor is there until the next one is asked for.
        """

    def offload(self) -> None:
        """Give back the device's memory until the next `update`, `weights` or `save`."""

    def save(self, path: str) -> None:
        """Write a Hugging Face model directory (safetensors, config, tokenizer) that transformers and vLLM load."""

    def close(self) -> None:
        """Let go of the model and its optimizer state. Idempotent."""
