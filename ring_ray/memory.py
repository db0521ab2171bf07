"""What one GPU holds in each phase of a step: arithmetic over a config and a model's shape, nothing is allocated.

P parameters of W bytes (4 in float32, 2 in bfloat16), R ranks of the policy, S tokens of a micro-batch, V words.

Policy, per GPU (DeepSpeed with AdamW, gradients summed in float32), bytes:

=====  =========  ================  =================================  ==================================
ZeRO   weights    master and Adam   gradients, kept between steps      and more of them in backward
=====  =========  ================  =================================  ==================================
0      4 P        8 P               0                                  4 P + 4 min(P, all-reduce bucket)
1      W P        12 P / R          4 P in bfloat16, else 0            4 P (+ 4 P / R in float32)
2      W P        12 P / R          0                                  (4 + W) P / R + W x largest module
                                                                       (float32: 4 P + 8 P / R)
3      W P / R    12 P / R          4 P / R                            2 W x largest module
=====  =========  ================  =================================  ==================================

``offload_optimizer`` takes master and Adam off the GPU, under ZeRO-3 the kept gradients as well, and
``offload_parameters`` the weights. ZeRO-1 to 3 hold a bucket of gradients on their way. Under ZeRO-3 small parameters
are whole on every rank; others are gathered: those of the module at work (a block of experts is one), those that
DeepSpeed keeps for their next use or fetches ahead, and a second copy of what is just arriving. On one rank there is
nothing to gather.

Activations: each matrix keeps its input and its output, an expert's as often as tokens choose one of its kind, and each
norm two copies in float32 and one in W bytes. With ``activation_checkpointing`` a layer keeps S x hidden only. Logits
are [S, V] in W bytes, and their gradient twice while it is put together from chunks, which are in float32.

An update has three moments, and the plan shows the one that takes most: the loss, with logits; the backward pass of a
layer, with gradients and its activations once more, twice where it was computed again; and the optimizer's step, when
activations are gone, which under ZeRO-3 copies the kept gradients, 4 P / R. These are bounds, meant to say what fits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ring_ray.config import ConfigError, ModelConfig, RunConfig
from ring_ray.engines.modules import sparse_moe_blocks
from ring_ray.engines.optimizer import REDUCE_BUCKET

GIB = 2**30
FREE_SHARE = 0.1  # of a GPU: CUDA contexts, NCCL, workspaces of kernels, fragmentation
LOGITS_CHUNK = 1024  # tokens whose logits are in float32 at a time: `token_logprobs`
# DeepSpeed's defaults, in parameters: gathered ones that it keeps, fetches ahead, has whole on every rank if smaller.
LIVE, PREFETCHED, PERSISTENT = 1_000_000_000, 50_000_000, 100_000
ALL_REDUCE_BUCKET, OPTIMIZER_GROUP = 500_000_000, 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the arithmetic needs to know of a decoder with attention over keys and values."""

    parameters: int
    active_parameters: int  # that one token goes through, embeddings included
    persistent_parameters: int  # of tensors that ZeRO-3 does not shard
    largest_parameter: int
    largest_module: int  # parameters that ZeRO-3 gathers at once
    layers: int
    hidden: int
    vocabulary: int
    cached_elements: int  # keys and values of one token, over all layers
    saved_elements: int  # what one token leaves for the backward pass, over all layers, in the model's dtype
    saved_float32: int  # and in float32


def model_shape(path: str, model: ModelConfig) -> ModelShape:
    """From the config.json of a Hugging Face directory or hub name; weights are neither read nor made."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    return shape_of(built)


def shape_of(model: Any) -> ModelShape:
    """The shape of a transformers model, wherever its weights are."""
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = [parameter.numel() for parameter in model.parameters()]
    gathered = [sum(p.numel() for p in block.parameters()) for block in sparse_moe_blocks(model)]
    gathered += [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    in_layers = [parameter for layer in layers for parameter in layer.parameters()]
    top_k = getattr(config, "num_experts_per_tok", None) or 0
    return ModelShape(
        parameters=sum(sizes),
        active_parameters=sum(p.numel() * top_k // len(p) if p.ndim == 3 else p.numel() for p in model.parameters()),
        persistent_parameters=sum(size for size in sizes if size <= PERSISTENT),
        largest_parameter=max(sizes),
        largest_module=max(gathered),
        layers=len(layers),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        cached_elements=2 * config.num_hidden_layers * config.num_key_value_heads * head_dim,
        saved_elements=sum(_saved(parameter, top_k) for parameter in in_layers),
        saved_float32=sum(2 * len(parameter) for parameter in in_layers if parameter.ndim == 1),
    )


def _saved(parameter: nn.Parameter, top_k: int) -> int:
    """Elements that a token leaves at this parameter: a norm [n], a matrix [out, in], or experts [E, out, in]."""
    if parameter.ndim == 1:
        return len(parameter)
    return int(sum(parameter.shape[-2:]) * (top_k if parameter.ndim == 3 else 1))


class Part(NamedTuple):
    name: str
    nbytes: float
    remedy: str  # what makes it smaller


class Row(NamedTuple):
    """A part of what a role holds on one GPU in a phase; phase "host" is what waits in the host's memory, per GPU."""

    phase: str
    role: str
    part: Part


def memory_plan(config: RunConfig, shape: ModelShape, gpu_bytes: float) -> tuple[Row, ...]:
    """Every part, by phase and role. Raises `ConfigError` where vLLM is left without room for one sequence."""
    plan = _Plan(config, shape)
    awake = {"policy": plan.policy(), "reference": plan.reference(), "rollout": plan.engine(gpu_bytes)}
    at_work = {
        "generate": {"rollout": awake["rollout"]},
        "reference": {"reference": [*awake["reference"], *plan.reference_work()]},
        "update": {"policy": [*awake["policy"], *plan.policy_work()]},
        "sync": {"policy": [*awake["policy"], *plan.transfer()], "rollout": awake["rollout"]},
    }
    if config.cluster.take_turns:
        at_work["sync"]["rollout"] = awake["rollout"][:1]  # the weights alone: the cache comes when the policy is gone
    roles = ["policy", "rollout", *(["reference"] if config.algo.kl_coefficient > 0 else [])]
    rows: list[Row] = []
    for phase, working in at_work.items():
        for role in roles:
            parts = working.get(role, [] if config.cluster.take_turns else awake[role])
            rows += [Row(phase, role, part) for part in parts if part.nbytes]
    return (*rows, *(Row("host", role, part) for role in roles for part in plan.host(role) if part.nbytes))


class _Plan:
    """The parts of each role."""

    def __init__(self, config: RunConfig, shape: ModelShape) -> None:
        self._config, self._shape = config, shape
        self._width = 4 if config.model.dtype == "float32" else 2
        self._ranks, self._stage = config.cluster.policy.workers, config.train.zero_stage
        self._longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
        tokens = max(config.train.micro_batch_tokens, self._longest)  # a longer row goes alone
        self._layer_inputs = self._width * tokens * shape.hidden * shape.layers
        self._token_layer = (self._width * shape.saved_elements + 4 * shape.saved_float32) / shape.layers
        self._layer = tokens * self._token_layer
        self._logits, self._logits_chunk = self._width * tokens * shape.vocabulary, 4 * LOGITS_CHUNK * shape.vocabulary
        self._fewer = f"a smaller train.micro_batch_tokens, though a row of {self._longest} tokens goes alone"

    def policy(self, *, offloads: bool = True) -> list[Part]:
        """What is there between steps; without ``offloads`` as if no such option were set."""
        train, P, W, R = self._config.train, self._shape.parameters, self._width, self._ranks
        weights = W * P / (R if self._stage == 3 else 1) * (not (offloads and train.offload_parameters))
        weights += W * self._shape.persistent_parameters * (self._stage == 3 and R > 1)
        on_device = not (offloads and train.offload_optimizer)
        kept = {1: 4 * P * (W == 2), 3: 4 * P / R * on_device}.get(self._stage, 0)
        states = 12 * P / R * on_device if self._stage else 8 * P
        bucket = 0 if self._stage == 0 or (self._stage, W) == (1, 2) else W * REDUCE_BUCKET
        more_ranks = "a higher train.zero_stage, more cluster.policy.workers"
        return [
            Part("weights", weights, f"{more_ranks}, train.offload_parameters=true"),
            Part("summed gradients", kept, more_ranks),
            Part("master weights and Adam", states, f"{more_ranks}, train.offload_optimizer=true"),
            Part("gradient bucket", bucket, "more GPU memory"),
        ]

    def policy_work(self) -> list[Part]:
        shape, recomputes = self._shape, self._config.train.activation_checkpointing
        kept = self._layer_inputs if recomputes else self._layer * shape.layers
        always = [
            Part("gathered weights", self._gathered(), "more GPU memory"),
            Part("activations", kept, f"train.activation_checkpointing=true, {self._fewer}"),
        ]
        loss = [*always, Part("logits", 3 * self._logits + 4 * self._logits_chunk, self._fewer)]
        backward = [
            *always,
            Part("one layer's backward", (1 + recomputes) * self._layer, self._fewer),
            Part("gradients of backward", self._gradients(), "train.zero_stage=3"),
        ]
        copies = self._stage == 3 and not self._config.train.offload_optimizer
        copied = copies * 4 * min(shape.parameters / self._ranks, OPTIMIZER_GROUP)
        step = [Part("gradients of the optimizer's step", copied, "more cluster.policy.workers")]
        return max(loss, backward, step, key=total)

    def _gathered(self) -> float:
        shape = self._shape
        if self._stage < 3 or self._ranks == 1:
            return 0
        live = min(shape.parameters, LIVE + shape.largest_module)
        arriving = min(shape.parameters, max(shape.largest_module, PREFETCHED + shape.largest_parameter))
        return self._width * (live + arriving)

    def _gradients(self) -> float:
        P, W, R, largest = self._shape.parameters, self._width, self._ranks, self._shape.largest_module
        in_float32 = {0: 4 * P + 4 * min(P, ALL_REDUCE_BUCKET), 1: 4 * P + 4 * P / R, 2: 4 * P + 8 * P / R}
        in_bfloat16 = {1: 4 * P, 2: 6 * P / R + W * largest}
        return (in_bfloat16 if W == 2 else in_float32).get(self._stage, 2 * W * largest)

    def reference(self) -> list[Part]:
        """A whole copy: it is not sharded."""
        return [Part("weights", self._width * self._shape.parameters, "algo.kl_coefficient=0, cluster=colocated")]

    def reference_work(self) -> list[Part]:
        """Nothing is kept for gradients: one layer is at work, then logits, which some models compute in two steps."""
        logits = self._logits + max(self._logits, 3 * self._logits_chunk)
        parts = [Part("logits", logits, self._fewer), Part("one layer's forward", self._layer, self._fewer)]
        return [max(parts, key=lambda part: part.nbytes)]

    def engine(self, gpu_bytes: float) -> list[Part]:
        """Weights, work and cache; on a GPU the cache is what the other two leave of vLLM's share."""
        rollout, shape, W = self._config.rollout, self._shape, self._width
        weights = W * shape.parameters / rollout.tensor_parallel
        work = rollout.max_batched_tokens * self._token_layer + 3 * 4 * rollout.max_sequences * shape.vocabulary
        sequence = W * shape.cached_elements * self._longest / rollout.tensor_parallel
        cache: float = rollout.kv_cache_mib << 20
        if self._config.cluster.device == "cuda":
            cache = rollout.gpu_memory_fraction * gpu_bytes - weights - work
        if cache < sequence:
            raise ConfigError(
                f"rollout.gpu_memory_fraction={rollout.gpu_memory_fraction}: weights take {weights / GIB:.1f} GiB, "
                f"work {work / GIB:.1f}, a full sequence {sequence / GIB:.2f}; raise it, or rollout.tensor_parallel"
            )
        return [
            Part("weights", weights, "a larger rollout.tensor_parallel"),
            Part("work", work, "smaller rollout.max_batched_tokens"),
            Part(f"KV cache ({cache / sequence:.1f} full sequences)", cache, "smaller rollout.gpu_memory_fraction"),
        ]

    def host(self, role: str) -> list[Part]:
        """What waits there for its turn, or for good; each rank of the policy loads the whole model there at first."""
        turns = self._config.cluster.take_turns
        if role != "policy":
            return self.reference() if role == "reference" and turns else []
        parts = zip(self.policy(offloads=False), self.policy(), strict=True)
        waiting = [whole for whole, on_device in parts if turns or whole.nbytes > on_device.nbytes]
        return [*waiting, Part("whole model, while it is loaded", self._width * self._shape.parameters, "host memory")]

    def transfer(self) -> list[Part]:
        """A tensor and its converted copy, and the bucket that it goes into."""
        tensor = self._width * self._shape.largest_parameter
        bucket = max(self._config.sync.bucket_mib << 20, tensor)
        gathered = 2 * tensor if self._stage == 3 and self._ranks > 1 else tensor
        return [Part("gathered tensor", gathered, "more GPU memory"), Part("bucket", bucket, "smaller sync.bucket_mib")]


def total(parts: Iterable[Part]) -> float:
    return sum(part.nbytes for part in parts)


def devices(config: RunConfig, rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by phase and by who shares a GPU: all roles if they are colocated, else each has its own."""

    def device(row: Row) -> tuple[str, str]:
        return row.phase, "all roles" if config.cluster.colocate or row.phase == "host" else row.role

    return {key: list(group) for key, group in groupby(rows, device)}


def check_memory(config: RunConfig, rows: Iterable[Row], gpu_bytes: float) -> None:
    """Raise `ConfigError`, with what to change, where a phase needs more than a GPU has."""
    usable = (1 - FREE_SHARE) * gpu_bytes
    faults: list[str] = []
    for (phase, _), held in devices(config, rows).items():
        needed = total(row.part for row in held)
        if phase == "host" or needed <= usable:
            continue
        faults.append(f"{phase} needs {needed / GIB:.1f} GiB, usable are {usable / GIB:.1f}; most of it by")
        largest = sorted(held, key=lambda row: -row.part.nbytes)[:3]
        faults += [f"  {role}, {part.name} {part.nbytes / GIB:.1f}: {part.remedy}" for _, role, part in largest]
    if faults:
        raise ConfigError("\n".join(faults))


def table(config: RunConfig, rows: Iterable[Row]) -> str:
    """For people: GiB of every part, with the sum of each device and phase."""
    line = "{:<10} {:<10} {:<34} {:>8}".format
    lines = [line("phase", "role", "part", "GiB")]
    for (phase, who), held in devices(config, rows).items():
        lines += [line(phase, row.role, row.part.name, f"{row.part.nbytes / GIB:.2f}") for row in held]
        lines += [line(phase, who, "sum", f"{total(row.part for row in held) / GIB:.2f}"), ""]
    return "\n".join(lines[:-1])
