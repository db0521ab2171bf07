"""Hugging Face models as policies: what the training engine and the frozen reference policy share."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ring_ray.algo.logprobs import TokenOutputs, token_logprobs
from ring_ray.algo.loss import Policy
from ring_ray.algo.moe import RouterSums
from ring_ray.algo.packing import Rows, collate, pack, split_tokens
from ring_ray.config import ModelConfig, RolloutConfig, require
from ring_ray.types import FloatArray, TokenBatch

logging.disable_progress_bar()  # each rank and role would draw its own


def load_model(path: str, config: ModelConfig) -> PreTrainedModel:
    """A causal language model with its weights in the configured dtype.

    In evaluation mode even where it is trained: dropout would part the ratios from 1 on unchanged weights.
    """
    dtype = getattr(torch, config.dtype)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=config.trust_remote_code)
    return model.eval()


def check_context(path: str, model: ModelConfig, rollout: RolloutConfig) -> None:
    """Raise `ConfigError` where prompt and response may together be longer than the model's context."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    require(
        context is None or longest <= context,
        "rollout.max_response_tokens",
        rollout.max_response_tokens,
        f"with rollout.max_prompt_tokens={rollout.max_prompt_tokens} it exceeds the {context} tokens of {path}",
    )


class CausalPolicy(nn.Module):
    """A causal language model, asked only for what the loss needs of it."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        # Experts that a token is sent to; None for a dense model.
        self.top_k: int | None = getattr(model.config, "num_experts_per_tok", None)

    def forward(self, token_ids_BT: Tensor, trained_BT: Tensor, target_ids_N: Tensor) -> TokenOutputs:
        """See `MicroBatch`. No attention mask: rows are padded on the right, and without one attention is fastest."""
        router = {} if self.top_k is None else {"output_router_logits": True}
        outputs = self.model(
            input_ids=token_ids_BT,
            use_cache=False,
            logits_to_keep=trained_BT,  # a boolean mask: logits come back flat, [N, V]
            **router,
        )
        logprobs_N, entropies_N = token_logprobs(outputs.logits, target_ids_N, self.temperature)
        if self.top_k is None:
            return TokenOutputs(logprobs_N, entropies_N, None)
        trained = trained_BT.flatten()
        router_logits_LNE = torch.stack([logits.reshape(len(trained), -1)[trained] for logits in outputs.router_logits])
        return TokenOutputs(logprobs_N, entropies_N, RouterSums.of(router_logits_LNE, self.top_k))


@torch.no_grad()
def rank_logprobs(
    policy: Policy, batch: TokenBatch, micro_batches: tuple[Rows, ...], device: torch.device
) -> dict[int, FloatArray]:
    """Log-probs of the trained tokens [stop - start] of the segments in ``micro_batches``, by segment index."""
    found: dict[int, FloatArray] = {}
    for rows in micro_batches:
        micro_batch = collate(batch, rows, [0.0] * len(batch.segments), None).to(device)
        values_N = policy(*micro_batch.inputs).logprobs_N.float().cpu().numpy()
        found.update(split_tokens(batch, rows, values_N))
    return found


class ReferenceModel:
    """A frozen policy. Its log-probs are at the rollout's temperature, as the training policy's are."""

    def __init__(
        self, path: str, config: ModelConfig, *, temperature: float, micro_batch_tokens: int, device: str
    ) -> None:
        self._device = torch.device(device)
        self._policy = CausalPolicy(load_model(path, config), temperature).requires_grad_(False).to(self._device)
        self._micro_batch_tokens = micro_batch_tokens

    def logprobs(self, batch: TokenBatch) -> tuple[FloatArray, ...]:
        """Log-probs of each segment's tokens [stop - start], nats."""
        (micro_batches,) = pack(batch, 1, self._micro_batch_tokens)
        found = rank_logprobs(self._policy, batch, micro_batches, self._device)
        return tuple(found[index] for index in range(len(batch.segments)))
