"""How a token is drawn: by one random number, where vLLM's own way takes one for each entry of the vocabulary."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from ring_ray.engines.vllm_cpu.kernels import random_sample

OFFSET = 4  # by which a draw moves vLLM's count: CUDA's generators count so


class Draws:
    """The random numbers of one request, in [0, 1): the n-th depends on its seed and on n.

    Takes the place of its `torch.Generator`, because vLLM puts that back by one draw where a step ended within the
    prompt, and those on a CPU can't be.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._random = np.random.Generator(self._bits)
        self._offset = 0

    def next(self) -> float:
        self._offset += OFFSET
        return self._random.random()

    def get_offset(self) -> int:
        return self._offset

    def set_offset(self, offset: int) -> None:
        self._bits.advance((offset - self._offset) // OFFSET)
        self._offset = offset


class RequestState(CachedRequestState):  # type: ignore[misc]
    """`CachedRequestState` whose generator, if it has a seed, is `Draws`."""

    generator: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator is not None:
            self.generator = Draws(self.sampling_params.seed)


def sample(
    self: Any, logits_BV: Tensor, draws: dict[int, Draws], k: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A token of each row, and the log-probs that it was drawn by: takes the place of `TopKTopPSampler.forward_cpu`.

    Rows without a seed share the process's random numbers.
    """
    logits_BV = apply_top_k_top_p(logits_BV, k, p)
    drawn_B = torch.rand(len(logits_BV), dtype=torch.float64)
    numbers_B = drawn_B.numpy()
    for row, of_request in draws.items():
        numbers_B[row] = of_request.next()
    return random_sample(logits_BV, drawn_B), logits_BV.log_softmax(dim=-1, dtype=torch.float32)


def register() -> None:
    """Make vLLM draw this way."""
    TopKTopPSampler.forward_cpu = sample
    gpu_model_runner.CachedRequestState = RequestState
