"""The model and what the engines do with it."""

from dataclasses import dataclass

from ring_ray.config.check import require, require_one_of
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What is trained."""

    path: str | None = key(None, "Hugging Face model directory or hub name; null makes the tiny MoE of the quickstart.")
    dtype: str = key("float32", "Of weights and activations: `float32` or `bfloat16`.")
    trust_remote_code: bool = key(False, "Run Python code that comes with the model.")

    def __post_init__(self) -> None:
        require_one_of(("float32", "bfloat16"), "model.dtype", self.dtype)


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """How responses are sampled (vLLM)."""

    max_prompt_tokens: int = key(64, "Tokens of the longest prompt, chat template included.")
    max_response_tokens: int = key(64, "Tokens after which a response is truncated.")
    temperature: float = key(1.0, "Sampling temperature, above 0.")
    top_p: float = key(1.0, "Nucleus of sampling; must be 1, since ratios compare whole distributions.")
    max_sequences: int = key(128, "Responses that one engine decodes at a time.")
    max_batched_tokens: int = key(2048, "Prompt and response tokens of one engine step; at least max_sequences.")
    kv_cache_mib: int = key(64, "MiB of keys and values per engine on a CPU; a GPU takes gpu_memory_fraction.")
    gpu_memory_fraction: float = key(0.4, "Share of a GPU's memory for the engine: weights, work and cache.")
    tensor_parallel: int = key(1, "Processes, and GPUs, that share one engine.")
    keep_cache: bool = key(
        False,
        "After a weight update resume from the keys and values of the old weights, as far as the same engine goes on, "
        "rather than compute them again.",
    )
    deterministic: bool = key(
        False,
        "A response's tokens depend on the run's seed, its prompt, its number and the weights, not on what else its "
        "engine decodes, and a step's prompts are issued in waves. For runs that repeat; slower.",
    )

    def __post_init__(self) -> None:
        counts = ("max_prompt_tokens", "max_response_tokens", "max_sequences", "max_batched_tokens", "kv_cache_mib")
        for name in (*counts, "tensor_parallel"):
            require(getattr(self, name) > 0, f"rollout.{name}", getattr(self, name), "must be at least 1")
        require(self.temperature > 0, "rollout.temperature", self.temperature, "must be above 0")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "must be in (0, 1]")
        require(
            0 < self.gpu_memory_fraction < 1,
            "rollout.gpu_memory_fraction",
            self.gpu_memory_fraction,
            "must be between 0 and 1",
        )
        require(
            self.max_batched_tokens >= self.max_sequences,
            "rollout.max_batched_tokens",
            self.max_batched_tokens,
            f"must hold a token of each of rollout.max_sequences={self.max_sequences}",
        )
        require(
            not (self.deterministic and self.keep_cache),
            "rollout.deterministic",
            self.deterministic,
            "needs rollout.keep_cache=false: which keys and values are kept depends on what else an engine decodes",
        )


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How the policy is updated (DeepSpeed)."""

    steps: int = key(100, "Optimizer steps of the run, and so weight syncs.")
    learning_rate: float = key(1e-4, "AdamW's, after warm-up constant.")
    warmup_steps: int = key(5, "Steps over which the learning rate rises linearly.")
    weight_decay: float = key(0.0, "AdamW's, decoupled from the gradient.")
    max_grad_norm: float = key(1.0, "Gradients with a larger L2 norm are scaled down to this.")
    max_skipped_steps: int = key(
        3,
        "Steps in a row that may be skipped, since their loss or gradient is not finite, until the run stops and keeps "
        "the batch of the last one.",
    )
    zero_stage: int = key(
        1, "ZeRO shards over the ranks: 0 nothing, 1 optimizer states, 2 gradients as well, 3 parameters as well."
    )
    micro_batch_tokens: int = key(2048, "Tokens of one micro-batch on a rank, padding included.")
    packing: str = key(
        "auto",
        "Rows of a micro-batch: `varlen` (end to end without padding), `padded` (rows of similar length side by side) "
        "or `auto` (varlen where the model's attention can be told where rows end).",
    )
    activation_checkpointing: bool = key(
        False, "Keep only each layer's input and compute the rest again on the way back: less memory, more time."
    )
    offload_optimizer: bool = key(False, "Master weights and Adam's moments stay in host memory; needs zero_stage > 0.")
    offload_parameters: bool = key(False, "The shards of the parameters stay in host memory; needs zero_stage=3.")

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps", self.steps, "must be at least 1")
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "must be above 0")
        require(self.warmup_steps >= 0, "train.warmup_steps", self.warmup_steps, "must not be negative")
        require(self.max_grad_norm > 0, "train.max_grad_norm", self.max_grad_norm, "must be above 0")
        require(self.max_skipped_steps >= 1, "train.max_skipped_steps", self.max_skipped_steps, "must be at least 1")
        require(self.zero_stage in (0, 1, 2, 3), "train.zero_stage", self.zero_stage, "must be 0, 1, 2 or 3")
        require(self.micro_batch_tokens > 0, "train.micro_batch_tokens", self.micro_batch_tokens, "must be at least 1")
        require_one_of(("auto", "varlen", "padded"), "train.packing", self.packing)
        require(
            not self.offload_optimizer or self.zero_stage > 0,
            "train.offload_optimizer",
            self.offload_optimizer,
            "needs train.zero_stage=1, 2 or 3",
        )
        require(
            not self.offload_parameters or self.zero_stage == 3,
            "train.offload_parameters",
            self.offload_parameters,
            "needs train.zero_stage=3",
        )


@dataclass(kw_only=True, slots=True)
class SyncConfig:
    """How new weights travel from the policy to the rollout engines, a bucket at a time."""

    transport: str = key(
        "auto",
        "`object_store` (Ray's), `ipc` (memory that policy rank i and engine i of one GPU or host share), `broadcast` "
        "(NCCL between GPUs, gloo between CPUs), `disk` or `auto` (what fits the cluster).",
    )
    bucket_mib: int = key(256, "MiB that a transfer holds on top of the weights; a larger tensor goes alone.")
    directory: str | None = key(
        None, "For transport=disk, a directory that every node sees; null is the run's directory."
    )
    verify_weights: bool = key(False, "After each transfer compare a checksum of every tensor on both sides.")

    def __post_init__(self) -> None:
        choices = ("auto", "object_store", "ipc", "broadcast", "disk")
        require_one_of(choices, "sync.transport", self.transport)
        require(self.bucket_mib > 0, "sync.bucket_mib", self.bucket_mib, "must be at least 1")
