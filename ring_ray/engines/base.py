"""The two protocols behind which the engines sit."""

from typing import Protocol

from ring_ray.types import FloatArray, Sequence, TokenBatch, UpdateMetrics, Weights


class RolloutEngine(Protocol):
    """Generates. One `generate` call is one sequence; many run at a time and the engine batches them."""

    async def generate(self, sequence: Sequence) -> Sequence:
        """Continue ``sequence`` until it finishes or the engine is interrupted.

        Returns the sequence with its new tokens, each with its log-prob under the current weights at sampling
        temperature and with the current policy version. ``finish_reason`` is "unfinished" after an interruption;
        passing the result in again resumes it. While the engine is interrupted, returns ``sequence`` unchanged.
        """

    async def interrupt(self) -> None:
        """Make every `generate` in progress return what it has; returns once no token can be sampled any more."""

    async def load(self, weights: Weights, version: int) -> None:
        """Replace the weights in place, drop the caches computed from the old ones and accept work again.

        Interrupts first if the caller has not.
        """

    async def resume(self) -> None:
        """Accept work again after `interrupt` with the weights that are there."""

    async def close(self) -> None:
        """End the engine and its processes. Idempotent."""


class TrainEngine(Protocol):
    """Trains. Every rank is given the same batch, takes its own share, and returns the same metrics."""

    def update(self, batch: TokenBatch, reference_logprobs: tuple[FloatArray, ...] | None) -> UpdateMetrics:
        """One optimizer step over the whole batch.

        ``reference_logprobs`` holds, for each segment of the batch, the reference policy's log-probs of its tokens
        [stop - start]; None where the KL coefficient is 0.
        """

    def logprobs(self, batch: TokenBatch) -> tuple[FloatArray, ...]:
        """Log-probs of each segment's tokens [stop - start] under the current weights."""

    def weights(self) -> Weights:
        """All parameters under their Hugging Face checkpoint names; every rank must call it, rank 0's answer counts."""

    def save(self, path: str) -> None:
        """Write a Hugging Face model directory (safetensors, config, tokenizer) that transformers and vLLM load."""
