"""The C3PO loss (Ring-lite, arXiv 2506.14731, section 3), its relatives, and accumulation over micro-batches.

``L = -Σ w [k J - β k3] - α_ent H + α_bal B + α_z Z`` over the trained tokens of a step. J is the policy-gradient
objective: ``min(r A, clip(r, 1-ε, 1+ε) A)`` for C3PO (`objectives.OBJECTIVES`); k is the correction for tokens that
another policy sampled (`objectives.correct`), 1 for C3PO. The weights w are data (`packing.token_weights`): 1/Φ for
C3PO. H, B and Z are means over the M tokens that the step trains on all ranks; M is Φ wherever the last response is
cut at the budget. Every term is a sum over tokens with factors that no rank and no micro-batch can change, so gradients
add up however the step is packed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ring_ray.algo.logprobs import TokenOutputs
from ring_ray.algo.moe import balance_loss, z_loss
from ring_ray.algo.objectives import OBJECTIVES, LossInputs, correct
from ring_ray.algo.packing import MicroBatch
from ring_ray.config import AlgoConfig
from ring_ray.types import UpdateMetrics

Policy: TypeAlias = Callable[..., TokenOutputs]
"""Called with the fields of `PolicyInputs`, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    loss: Tensor  # [], without B and Z
    sums: dict[str, Tensor]  # [] each, over tokens, detached
    ratio_max: Tensor  # [], of π_train / π_rollout; 0 without tokens


def policy_loss(inputs: LossInputs, algo: AlgoConfig, trained_tokens: int) -> LossOutputs:
    """Loss of some of the step's ``trained_tokens`` M: a policy gradient, or the likelihood.

    With ``behaviour: recomputed`` ratios are taken against the log-probs of this very forward pass. A batch makes one
    optimizer step, so these are the log-probs before the update: r is 1, nothing is clipped, and r has a gradient. With
    ``objective: likelihood`` the loss is ``-Σ w log π``, nothing else.

    Raises ValueError where β is above 0 and there are no reference log-probs.
    """
    new_N, rollout_N, weights_N = inputs.logprobs_N, inputs.behaviour_logprobs_N, inputs.weights_N
    zero_N = torch.zeros_like(new_N)
    if algo.objective == "likelihood":
        nothing = dict.fromkeys(("kl", "behaviour_kl", "clipped", "truncated", "masked"), zero_N)
        return _outputs(-(weights_N * new_N).sum(), zero_N, entropy=inputs.entropies_N, **nothing)
    mismatch_N = (new_N.detach() - rollout_N).exp()
    correction = correct(mismatch_N, algo)
    behaviour_N = rollout_N if algo.behaviour == "rollout" else new_N.detach()
    surrogate = OBJECTIVES[algo.objective](inputs, new_N - behaviour_N, algo)
    objective_N, kl_N = correction.weights_N * surrogate.values_N, zero_N
    if algo.kl_coefficient > 0:
        if inputs.reference_logprobs_N is None:
            raise ValueError(f"algo.kl_coefficient={algo.kl_coefficient} needs reference log-probs")
        kl_N = k3(new_N, inputs.reference_logprobs_N)
        objective_N = objective_N - algo.kl_coefficient * kl_N
    return _outputs(
        -(weights_N * objective_N).sum() - algo.entropy_coefficient * inputs.entropies_N.sum() / trained_tokens,
        mismatch_N,
        entropy=inputs.entropies_N,
        kl=kl_N,
        # Between sampling and training policy, on tokens of the former: k3 with the roles turned round.
        behaviour_kl=k3(rollout_N, new_N),
        clipped=surrogate.clipped_N,
        truncated=correction.truncated_N,
        masked=correction.masked_N,
    )


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(π || other) on tokens that π sampled: unbiased there and never negative."""
    log_ratio_N = other_logprobs_N - logprobs_N
    return log_ratio_N.exp() - log_ratio_N - 1


def _outputs(loss: Tensor, ratio_N: Tensor, **per_token: Tensor) -> LossOutputs:
    sums = {name: value.detach().sum(dtype=torch.float64) for name, value in per_token.items()}
    ratio_max = ratio_N.max() if len(ratio_N) else ratio_N.new_zeros(())
    return LossOutputs(loss=loss, sums={"loss": loss.detach().double(), **sums}, ratio_max=ratio_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """What one rank's micro-batches come to; the step's is their sum over ranks (for ``ratio_max`` the maximum)."""

    sums: dict[str, Tensor]
    ratio_max: Tensor

    def router_losses(self, trained_tokens: int) -> tuple[float, float]:
        """B and Z of the step, 0 for dense models."""
        if "probabilities_LE" not in self.sums:
            return 0.0, 0.0
        balance = balance_loss(self.sums["probabilities_LE"], self.sums["choices_LE"], trained_tokens)
        return float(balance), float(z_loss(self.sums["squared_logsumexp_L"], trained_tokens))

    def loss(self, algo: AlgoConfig, trained_tokens: int) -> float:
        """What the step minimizes."""
        balance, z = self.router_losses(trained_tokens)
        return float(self.sums["loss"]) + algo.balance_coefficient * balance + algo.z_coefficient * z


def accumulate(
    policy: Policy,
    micro_batches: Sequence[MicroBatch],
    algo: AlgoConfig,
    *,
    trained_tokens: int,
    backward: Callable[[Tensor], object],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> StepSums:
    """Run ``backward`` on the loss of each micro-batch, of which there must be at least one.

    The share F of each expert in the choices of the whole step must be known before the first backward pass. So where
    α_bal is above 0, every micro-batch but one goes through one more forward pass, without gradient, and
    ``sum_over_ranks`` is called once. At α_bal = 0 neither happens, and B is a metric only.
    """
    balanced = algo.balance_coefficient > 0
    *others, last = micro_batches
    counts = _count_choices(policy, others) if balanced else []
    outputs = policy(*last.inputs)  # one pass both to count and to train
    choices_LE = None
    if balanced and outputs.router is not None:
        choices_LE = sum_over_ranks(sum(counts, start=outputs.router.choices_LE))
    totals: dict[str, Tensor] = {}
    ratio_max = last.weights_N.new_zeros(())
    for micro_batch in (last, *others):
        if micro_batch is not last:
            outputs = policy(*micro_batch.inputs)
        result = _micro_batch_loss(outputs, micro_batch, algo, trained_tokens, choices_LE)
        backward(result.loss)
        totals = {name: totals.get(name, 0) + value for name, value in result.sums.items()}
        ratio_max = torch.maximum(ratio_max, result.ratio_max)
    return StepSums(sums=totals, ratio_max=ratio_max)


@torch.no_grad()
def _count_choices(policy: Policy, micro_batches: Sequence[MicroBatch]) -> list[Tensor]:
    routers = [policy(*micro_batch.inputs).router for micro_batch in micro_batches]
    return [router.choices_LE for router in routers if router is not None]


def _micro_batch_loss(
    outputs: TokenOutputs, micro_batch: MicroBatch, algo: AlgoConfig, trained_tokens: int, choices_LE: Tensor | None
) -> LossOutputs:
    """The loss with B and Z; ``choices_LE`` are those of the step, None to leave B out."""
    inputs = LossInputs(
        logprobs_N=outputs.logprobs_N,
        entropies_N=outputs.entropies_N,
        behaviour_logprobs_N=micro_batch.behaviour_logprobs_N,
        advantages_N=micro_batch.advantages_N,
        weights_N=micro_batch.weights_N,
        rows_N=micro_batch.rows_N,
        reference_logprobs_N=micro_batch.reference_logprobs_N,
    )
    result, router = policy_loss(inputs, algo, trained_tokens), outputs.router
    if router is None:
        return result
    loss = result.loss + algo.z_coefficient * z_loss(router.squared_logsumexp_L, trained_tokens)
    if choices_LE is not None:
        loss = loss + algo.balance_coefficient * balance_loss(router.probabilities_LE, choices_LE, trained_tokens)
    sums = {name: value.detach().double() for name, value in router._asdict().items()}
    return replace(result, loss=loss, sums=result.sums | sums)


def update_metrics(
    step: StepSums,
    algo: AlgoConfig,
    *,
    trained_tokens: int,
    grad_norm: float,
    learning_rate: float,
    micro_batches: int,
) -> UpdateMetrics:
    """From the sums over all ranks; a step whose loss or gradient is not finite is skipped."""
    names = ("entropy", "kl", "behaviour_kl", "clipped", "truncated", "masked")
    mean = {name: float(step.sums[name]) / trained_tokens for name in names}
    balance, z = step.router_losses(trained_tokens)
    loss = step.loss(algo, trained_tokens)
    return UpdateMetrics(
        loss=loss,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        entropy=mean["entropy"],
        kl=mean["kl"],
        clip_fraction=mean["clipped"],
        ratio_max=float(step.ratio_max),
        behaviour_kl=mean["behaviour_kl"],
        truncated_fraction=mean["truncated"],
        masked_fraction=mean["masked"],
        balance_loss=balance,
        z_loss=z,
        micro_batches=micro_batches,
        skipped=not (math.isfinite(loss) and math.isfinite(grad_norm)),
    )
