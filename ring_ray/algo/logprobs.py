"""Log-probs of the tokens that were taken, and the entropy of the distributions that they were drawn from."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ring_ray.algo.moe import RouterSums


class TokenOutputs(NamedTuple):
    """What a policy says of the N trained tokens of a micro-batch."""

    logprobs_N: Tensor  # nats
    entropies_N: Tensor  # nats
    router: RouterSums | None  # over the positions that predict them; None for a dense model


def token_logprobs(
    logits_NV: Tensor, target_ids_N: Tensor, temperature: float, chunk_tokens: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log-probs of ``target_ids_N`` and entropies, both [N] in nats, under ``softmax(logits / temperature)``.

    The temperature is the one that the rollout samples at, so that ratios compare like with like. Computed in at least
    fp32, ``chunk_tokens`` at a time and again in the backward pass: no copy [N, V] in fp32 is ever held.
    """
    chunks = zip(torch.split(logits_NV, chunk_tokens), torch.split(target_ids_N, chunk_tokens), strict=True)
    outputs = [checkpoint(_chunk_logprobs, *chunk, temperature, use_reentrant=False) for chunk in chunks]
    logprobs, entropies = zip(*outputs, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(logits_NV: Tensor, target_ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    precise = torch.promote_types(logits_NV.dtype, torch.float32)
    logprobs_NV = (logits_NV.to(precise) / temperature).log_softmax(-1)
    taken_N = logprobs_NV.gather(-1, target_ids_N[:, None]).squeeze(-1)
    return taken_N, -(logprobs_NV.exp() * logprobs_NV).sum(-1)
