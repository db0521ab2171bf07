"""Hugging Face models as policies: what the training engine and the frozen reference policy share."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ring_ray.algo.logprobs import TokenOutputs, token_logprobs
from ring_ray.algo.loss import Policy
from ring_ray.algo.moe import RouterSums
from ring_ray.algo.packing import Rows, collate, pack, split_tokens
from ring_ray.config import AlgoConfig, ConfigError, ModelConfig, RolloutConfig, TrainConfig, require
from ring_ray.engines.attention import VARLEN, packs_varlen, rows_end_to_end
from ring_ray.engines.modules import recompute_layers
from ring_ray.engines.routing import RoutingReplay
from ring_ray.types import FloatArray, TokenBatch

logging.disable_progress_bar()  # each rank and role would draw its own


def load_model(path: str, config: ModelConfig) -> PreTrainedModel:
    """A causal language model with its weights in the configured dtype.

    In evaluation mode even where it is trained: dropout would part the ratios from 1 on unchanged weights.
    """
    dtype = getattr(torch, config.dtype)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=config.trust_remote_code)
    return model.eval()


def check_model(path: str, model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ConfigError` where a model lacks files, or is not the one that its tokenizer was made for.

    It may know more ids than the tokenizer: many embeddings are padded to a round size.
    """
    config = _load_config(path, model)
    _check_weights(Path(path))
    ids, rows = max(tokenizer.get_vocab().values()) + 1, config.get_text_config().vocab_size
    require(
        ids <= rows,
        "model.path",
        path,
        f"its tokenizer has {ids} ids, its embedding only {rows} rows: take the tokenizer that it was trained with, or "
        "resize the embedding",
    )
    ends = _eos_ids(path, config)
    require(
        tokenizer.eos_token_id in ends,
        "model.path",
        path,
        f"its tokenizer's eos is {tokenizer.eos_token!r}, id {tokenizer.eos_token_id}, but responses end at the ids "
        f"{ends}: add the former to eos_token_id of generation_config.json, or correct tokenizer_config.json",
    )


def _load_config(path: str, model: ModelConfig) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # a damaged file may fail anywhere
        raise ConfigError(f"model.path={path!r}: no config.json that transformers can read: {error}") from error


def _check_weights(directory: Path) -> None:
    """That they are there and whole, as far as their header tells; what is no directory is a model hub's name."""
    if not directory.is_dir():
        return
    files = [*directory.glob("*.safetensors")]
    require(
        bool(files or [*directory.glob("*.bin")]), "model.path", str(directory), "has no *.safetensors with weights"
    )
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"model.path={str(directory)!r}: {file.name} is damaged: {error}") from error


def _eos_ids(path: str, config: PreTrainedConfig) -> list[object]:
    """Where vLLM ends a response: it is not told of the tokenizer."""
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    except Exception as error:  # as for any other damaged file
        raise ConfigError(f"model.path={path!r}: generation_config.json is damaged: {error}") from error
    ids: object = generation.eos_token_id
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def check_context(path: str, model: ModelConfig, rollout: RolloutConfig) -> None:
    """Raise `ConfigError` where prompt and response may together be longer than the model's context."""
    config = _load_config(path, model)
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    require(
        context is None or longest <= context,
        "rollout.max_response_tokens",
        rollout.max_response_tokens,
        f"with rollout.max_prompt_tokens={rollout.max_prompt_tokens} it exceeds the {context} tokens of {path}",
    )


def check_policy(path: str, model: ModelConfig, train: TrainConfig, algo: AlgoConfig) -> None:
    """Raise `ConfigError` where the model can't be packed, recomputed or replayed as configured. Holds no weights."""
    config = _load_config(path, model)
    try:
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # numbers that do not go together may fail anywhere
        raise ConfigError(f"model.path={path!r}: config.json is of no causal language model: {error}") from error
    CausalPolicy(built, temperature=1.0, packing=train.packing, replay_routing=algo.replay_routing)
    if train.activation_checkpointing:
        recompute_layers(built)


class CausalPolicy(nn.Module):
    """A causal language model, asked only for what the loss needs of it.

    ``packing`` as in `TrainConfig`; ``padded`` is what became of it. ``replay_routing`` as in `AlgoConfig`: it needs
    micro-batches with routed experts and leaves others as they are. Raises ConfigError where the model can't.
    """

    def __init__(
        self, model: PreTrainedModel, temperature: float, *, packing: str = "auto", replay_routing: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        # Experts that a token is sent to; None for a dense model.
        self.top_k: int | None = getattr(model.config, "num_experts_per_tok", None)
        self.padded = packing == "padded" or not packs_varlen(model)
        require(
            packing != "varlen" or not self.padded,
            "train.packing",
            packing,
            f"must be padded, or auto: nothing can tell {type(model).__name__} where rows end",
        )
        if not self.padded:
            model.set_attn_implementation(VARLEN)
        self._replay = RoutingReplay(model) if replay_routing else None

    def forward(
        self,
        token_ids_BT: Tensor,
        trained_BT: Tensor,
        target_ids_N: Tensor,
        position_ids_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        longest: int | None = None,
        routed_experts_SLK: Tensor | None = None,
    ) -> TokenOutputs:
        """See `PolicyInputs`. No attention mask: rows are padded on the right, and without one attention is fastest.

        Raises ValueError for rows end to end, or routed experts, where the policy was not made for them.
        """
        arguments: dict[str, object] = {} if self.top_k is None else {"output_router_logits": True}
        if cu_seqlens is not None:
            if self.padded:
                raise ValueError("rows end to end, for a policy that packs with padding")
            arguments |= {"position_ids": position_ids_BT, "cu_seq_lens_q": cu_seqlens, "max_length_q": longest}
        if routed_experts_SLK is not None:
            if self._replay is None:
                raise ValueError("routed experts, for a policy that replays no routing")
            arguments |= {"routed_experts_SLK": routed_experts_SLK}
        with rows_end_to_end(cu_seqlens is not None):
            outputs = self.model(
                input_ids=token_ids_BT,
                use_cache=False,
                logits_to_keep=trained_BT,  # a boolean mask: logits come back flat, [N, V]
                **arguments,
            )
        logprobs_N, entropies_N = token_logprobs(outputs.logits, target_ids_N, self.temperature)
        if self.top_k is None:
            return TokenOutputs(logprobs_N, entropies_N, None)
        trained_S = trained_BT.flatten()
        router_logits_LNE = torch.stack(
            [logits.reshape(len(trained_S), -1)[trained_S] for logits in outputs.router_logits]
        )
        router = RouterSums.of(router_logits_LNE, self.top_k)
        if routed_experts_SLK is not None and self._replay is not None:
            choices_LE = self._replay.choices(router_logits_LNE, routed_experts_SLK[trained_S])
            router = router._replace(choices_LE=choices_LE)
        return TokenOutputs(logprobs_N, entropies_N, router)


@torch.no_grad()
def rank_logprobs(
    policy: Policy, batch: TokenBatch, micro_batches: tuple[Rows, ...], device: torch.device, *, padded: bool = True
) -> dict[int, FloatArray]:
    """Log-probs of the trained tokens [stop - start] of the segments in ``micro_batches``, by segment index."""
    found: dict[int, FloatArray] = {}
    for rows in micro_batches:
        micro_batch = collate(batch, rows, [0.0] * len(batch.segments), None, padded=padded).to(device)
        values_N = policy(*micro_batch.inputs).logprobs_N.float().cpu().numpy()
        found.update(split_tokens(batch, rows, values_N))
    return found


class ReferenceModel:
    """A frozen policy. Its log-probs are at the rollout's temperature, as the training policy's are."""

    def __init__(
        self,
        path: str,
        config: ModelConfig,
        *,
        temperature: float,
        micro_batch_tokens: int,
        device: str,
        packing: str = "auto",
    ) -> None:
        self._device = torch.device(device)
        self._policy = CausalPolicy(load_model(path, config), temperature, packing=packing).requires_grad_(False)
        tensors = (*self._policy.parameters(), *self._policy.buffers())
        self._hosted = [(tensor, tensor.data) for tensor in tensors]  # it never changes, so it is never copied back
        self._micro_batch_tokens = micro_batch_tokens

    def logprobs(self, batch: TokenBatch, rank: int = 0, ranks: int = 1) -> dict[int, FloatArray]:
        """Log-probs, in nats, of the tokens [stop - start] of the segments that fall to ``rank``, by segment index.

        Every segment falls to one of the ``ranks`` that are given the same batch.
        """
        padded = self._policy.padded
        share = pack(batch, ranks, self._micro_batch_tokens, padded=padded)[rank]
        for tensor, hosted in self._hosted:
            if tensor.device.type != self._device.type:
                tensor.data = hosted.to(self._device)
        return rank_logprobs(self._policy, batch, share, self._device, padded=padded)

    def offload(self) -> None:
        """Give the device's memory back until the next `logprobs`."""
        for tensor, hosted in self._hosted:
            tensor.data = hosted
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
