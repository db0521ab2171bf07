"""Load balance B and router z-loss Z of a mixture of experts (Ring-lite, arXiv 2506.14731, section 3).

Both are means over the positions that predict trained tokens, so that prompts and re-read context count nowhere and a
token counts once however its response is cut. M is the number of those positions in the whole step, over all ranks.
Dimensions: L MoE layers, N positions, E experts.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class RouterSums(NamedTuple):
    """Sums over positions that add up over micro-batches and ranks."""

    probabilities_LE: Tensor
    choices_LE: Tensor  # times that expert e was among the top k; not differentiable
    squared_logsumexp_L: Tensor

    @staticmethod
    def of(router_logits_LNE: Tensor, top_k: int) -> "RouterSums":
        """For softmax routers that choose the ``top_k`` largest logits. Computed in at least fp32."""
        logits_LNE = router_logits_LNE.to(torch.promote_types(router_logits_LNE.dtype, torch.float32))
        chosen_LNE = torch.zeros_like(logits_LNE).scatter(-1, logits_LNE.topk(top_k, dim=-1).indices, 1.0)
        return RouterSums(logits_LNE.softmax(-1).sum(1), chosen_LNE.sum(1), logits_LNE.logsumexp(-1).square().sum(1))


def balance_loss(probabilities_LE: Tensor, choices_LE: Tensor, positions: int) -> Tensor:
    """``B = E Σ_e P_e F_e``, mean over layers: 1 when experts are evenly used, E when one takes all.

    P_e is the mean router probability of expert e, from its sum ``probabilities_LE`` over ``positions``; F_e is its
    share of all choices ``choices_LE`` of the step and sums to 1. (The paper's ``(1/N_e) Σ P_i F_i N_e`` leaves the
    units of P and F open; here it reads ``(1/E) Σ (E P_e)(E F_e)``, both relative to uniform. What transformers
    computes is top_k times as much.)

    Linear in ``probabilities_LE``: terms of micro-batches that share ``choices_LE`` and ``positions`` add up to the
    B of the step, however it is packed.
    """
    shares_LE = choices_LE / choices_LE.sum(-1, keepdim=True)
    experts = probabilities_LE.shape[-1]
    return experts * (probabilities_LE / positions * shares_LE).sum(-1).mean()


def z_loss(squared_logsumexp_L: Tensor, positions: int) -> Tensor:
    """``Z = (1/M) Σ logsumexp(router logits)²``, mean over layers; adds up over micro-batches as B does."""
    return squared_logsumexp_L.mean() / positions
