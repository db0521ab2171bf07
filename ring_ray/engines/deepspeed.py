"""The policy under training: DeepSpeed ZeRO around `algo.loss.accumulate`."""

import gc
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore
from transformers import AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from ring_ray.algo.loss import StepSums, accumulate, update_metrics
from ring_ray.algo.packing import MicroBatch, Rows, collate, pack, token_weights
from ring_ray.config import AlgoConfig, ModelConfig, TrainConfig
from ring_ray.engines.broadcast import listening_store
from ring_ray.engines.hf import CausalPolicy, load_model, rank_logprobs
from ring_ray.engines.host_memory import HostMemory, free, tensors_in
from ring_ray.engines.modules import conversion_groups, recompute_layers, sparse_moe_blocks, unique_tensors
from ring_ray.engines.optimizer import Optimizer, deepspeed_config
from ring_ray.engines.training_state import TrainingState
from ring_ray.types import FloatArray, TokenBatch, UpdateMetrics


class DeepSpeedEngine:
    """A `TrainEngine`: one rank of a data-parallel group whose optimizer, gradients and parameters ZeRO shards.

    Every rank constructs it with the same arguments but ``rank``; the constructor and all methods but `close` are
    collective. The process group is joined by the first engine of a process and outlives it, so that a later engine
    (RL after the cold start) finds it. With ``device="cuda"`` the process must see its own GPU only, as Ray's actors
    do. A lone rank needs no ``master_port``. Each rank first loads the whole model on the host. Under ZeRO-3 parameters
    then go to the device one at a time, where only the rank's shard of each stays; the other stages move them all.
    """

    def __init__(
        self,
        model_path: str,
        *,
        model: ModelConfig,
        train: TrainConfig,
        algo: AlgoConfig,
        temperature: float,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        master_address: str = "127.0.0.1",
        master_port: int = 0,
    ) -> None:
        self._model_path, self._trust_remote_code = model_path, model.trust_remote_code
        self._train = train
        self._rank, self._world_size, self._device = rank, world_size, torch.device(device)
        self._deepspeed = _import_deepspeed(device)
        if not dist.is_initialized():
            dist.init_process_group(
                "gloo" if device == "cpu" else "nccl",
                store=(
                    listening_store(master_address, master_port, world_size)
                    if rank == 0
                    else TCPStore(master_address, master_port, world_size)
                ),
                rank=rank,
                world_size=world_size,
            )
        self._policy = CausalPolicy(
            load_model(model_path, model), temperature, packing=train.packing, replay_routing=algo.replay_routing
        )
        # A dense model has no experts to balance: this spares it the forward passes that would count their use.
        self._algo = algo if self._policy.top_k is not None else replace(algo, balance_coefficient=0.0)
        if train.activation_checkpointing:
            recompute_layers(self._policy.model)
        for block in sparse_moe_blocks(self._policy):
            # ZeRO-3 gathers its experts at once: which of them a rank needs, and when, is for the tokens to say.
            self._deepspeed.utils.set_z3_leaf_module(block, True)
        self._host_memory = HostMemory()
        self._steps = torch.zeros((), dtype=torch.int64)
        self._engine = self._initialize(model.dtype)

    def update(self, batch: TokenBatch, reference_logprobs: tuple[FloatArray, ...] | None) -> UpdateMetrics:
        """One optimizer step over the whole batch.

        ``reference_logprobs`` as in `TrainEngine`. A step whose loss or gradient is not finite is skipped on all ranks:
        parameters, master weights, Adam's state and the learning rate's schedule stay as they were. Raises ValueError
        for a batch without tokens.
        """
        if batch.trained_tokens == 0:
            raise ValueError("the batch trains no token")
        self._host_memory.give_back()
        micro_batches = self._micro_batches(batch, reference_logprobs)
        sums = accumulate(
            self._engine,
            micro_batches,
            self._algo,
            trained_tokens=batch.trained_tokens,
            # DeepSpeed averages gradients over ranks; the loss is a plain sum over them.
            backward=lambda loss: self._engine.backward(loss * self._world_size),
            sum_over_ranks=_sum_over_ranks,
        )
        total = _total(sums)
        learning_rate, grad_norm = self._optimizer.step(
            self._engine,
            after=int(self._steps),
            skip=not math.isfinite(total.loss(self._algo, batch.trained_tokens)),
        )
        metrics = update_metrics(
            total,
            self._algo,
            trained_tokens=batch.trained_tokens,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            micro_batches=len(micro_batches),
        )
        self._steps += not metrics.skipped
        return metrics

    def logprobs(self, batch: TokenBatch) -> tuple[FloatArray, ...]:
        """Log-probs of each segment's tokens [stop - start] under the current weights, at sampling temperature."""
        self._host_memory.give_back()
        found = rank_logprobs(self._engine, batch, self._share(batch), self._device, padded=self._policy.padded)
        gathered: list[dict[int, FloatArray]] = [{}] * self._world_size
        dist.all_gather_object(gathered, found)
        merged = {index: values for part in gathered for index, values in part.items()}
        return tuple(merged[index] for index in range(len(batch.segments)))

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and persistent buffers as in `TrainEngine`, the same on every rank, tied ones once.

        ZeRO-3 gathers one parameter at a time, or as many as one tensor of the checkpoint was made into.
        """
        self._host_memory.give_back()
        tensors, model = unique_tensors(self._policy.model), self._policy.model
        for names in conversion_groups(model, tensors):
            with self._gathered([tensors[name] for name in names]):
                yield from revert_weight_conversion(model, {name: tensors[name].detach() for name in names}).items()

    def offload(self) -> None:
        """Move to the host what is on the device: parameters, gradients, master weights and Adam's moments."""
        self._host_memory.take(self._tensors(), self._device)

    def save(self, path: str) -> None:
        """Write a Hugging Face model directory: safetensors, config, and the tokenizer that ``model_path`` has."""
        self._host_memory.give_back()
        state: dict[str, Tensor] = {}
        for name, tensor in unique_tensors(self._policy.model).items():
            with self._gathered([tensor]):
                if self._rank == 0:
                    state[name] = tensor.detach().to("cpu", copy=True)
        if self._rank == 0:
            self._policy.model.save_pretrained(path, state_dict=state)
            tokenizer = AutoTokenizer.from_pretrained(self._model_path, trust_remote_code=self._trust_remote_code)
            tokenizer.save_pretrained(path)
        dist.barrier()

    def snapshot(self) -> dict[str, Tensor]:
        """Host copies of this rank's share of the training state, by name as in `training_state`.

        Over all ranks each tensor of the state comes once. Training goes on as if there had been no snapshot.
        """
        return self._training_state().snapshot()

    def restore(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Go on from what the ranks' snapshots hold together, whatever their number and ZeRO stage were.

        Every rank is given all ``tensors``, of which it holds one at a time. Raises ValueError that names the tensor
        where they are not those of this model; the engine is then of no use until another state is restored.
        """
        self._training_state().restore(tensors)

    def close(self) -> None:
        """Let go of the model and its optimizer state, so that another engine can be made. Idempotent."""
        if self._engine is not None:
            tensors = self._tensors()
            self._engine.destroy()
            # The objects can't be relied on to go: DeepSpeed's ZeRO-3 has the model in caches that outlive the engine.
            free(tensors)
            self._engine, self._host_memory = None, HostMemory()
            del self._policy, self._optimizer
            gc.collect()  # modules, hooks and optimizer refer to each other

    def _initialize(self, dtype: str) -> Any:
        self._optimizer = Optimizer(self._policy.parameters(), self._train)
        config = deepspeed_config(dtype, self._train, sum(p.numel() for p in self._policy.parameters()))
        if self._train.zero_stage == 3:
            self._shard(dtype, config)
        return self._deepspeed.initialize(
            model=self._policy, optimizer=self._optimizer.adamw, config=config, dist_init_required=False
        )[0]

    def _shard(self, dtype: str, config: dict[str, Any]) -> None:
        """Bring the parameters to the device one at a time; `initialize` would bring them all, and then shard them.

        Of a sharded model it neither casts parameters nor moves buffers.
        """
        for parameter in self._policy.parameters():
            # transformers keeps some in float32 where a model asks for that; ZeRO-3 wants one dtype.
            parameter.data = parameter.data.to(getattr(torch, dtype))
        self._deepspeed.zero.Init(module=self._policy, config_dict_or_path=config)
        self._policy.to(self._device)  # buffers alone: parameters are empty but for their shards, which stay

    def _micro_batches(self, batch: TokenBatch, reference_logprobs: tuple[FloatArray, ...] | None) -> list[MicroBatch]:
        weights = token_weights(batch, self._algo.aggregation)
        micro_batches = [
            collate(
                batch,
                rows,
                weights,
                reference_logprobs,
                padded=self._policy.padded,
                with_routing=self._algo.replay_routing,
            )
            for rows in self._share(batch)
        ]
        return [micro_batch.to(self._device) for micro_batch in micro_batches]

    def _share(self, batch: TokenBatch) -> tuple[Rows, ...]:
        """The rows of each of this rank's micro-batches."""
        shares = pack(batch, self._world_size, self._train.micro_batch_tokens, padded=self._policy.padded)
        return shares[self._rank]

    def _tensors(self) -> list[Tensor]:
        """All that takes memory between two steps, or is a view of it."""
        optimizers = [vars(self._engine.optimizer), vars(self._engine.basic_optimizer)]
        return [*tensors_in([*self._policy.parameters(), *optimizers])]

    def _training_state(self) -> TrainingState:
        self._host_memory.give_back()
        tensors = unique_tensors(self._policy.model)
        return TrainingState(self._engine, tensors, self._steps, zero_stage=self._train.zero_stage, device=self._device)

    def _gathered(self, tensors: list[Tensor]) -> Any:
        return self._deepspeed.zero.GatheredParameters(tensors, enabled=self._train.zero_stage == 3)


def _import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for ``device``, which it chooses once and for all when it is imported."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    # It would be compiled at start-up (half a minute) for collectives between processes of one host.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


def _total(step: StepSums) -> StepSums:
    """The step's sums over all ranks."""
    dist.all_reduce(step.ratio_max, op=dist.ReduceOp.MAX)
    return StepSums(sums={name: _sum_over_ranks(value) for name, value in step.sums.items()}, ratio_max=step.ratio_max)
