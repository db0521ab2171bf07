"""The model and what the engines do with it."""

from dataclasses import dataclass

from ring_ray.config.check import require, require_one_of


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What is trained."""

    path: str | None = None  # Hugging Face model directory or hub name; null makes the tiny MoE of the quickstart
    dtype: str = "float32"  # float32 or bfloat16
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_one_of(("float32", "bfloat16"), "model.dtype", self.dtype)


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """How responses are sampled (vLLM)."""

    max_prompt_tokens: int = 64
    max_response_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    max_sequences: int = 128  # that one engine decodes at a time
    max_batched_tokens: int = 2048  # prompt and response tokens of one engine step
    kv_cache_mib: int = 64  # on a CPU; a GPU takes gpu_memory_fraction
    gpu_memory_fraction: float = 0.4
    tensor_parallel: int = 1  # processes, and GPUs, that share one engine
    keep_cache: bool = False  # after a weight update resume from the keys and values of the old weights, as far as the
    # same engine goes on, rather than compute them again

    def __post_init__(self) -> None:
        counts = ("max_prompt_tokens", "max_response_tokens", "max_sequences", "max_batched_tokens", "kv_cache_mib")
        for key in (*counts, "tensor_parallel"):
            require(getattr(self, key) > 0, f"rollout.{key}", getattr(self, key), "must be at least 1")
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


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How the policy is updated (DeepSpeed)."""

    steps: int = 100
    learning_rate: float = 1e-4
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    zero_stage: int = 1
    micro_batch_tokens: int = 2048  # tokens of one micro-batch, padding included
    packing: str = "auto"  # "varlen": rows end to end without padding; "padded": rows of similar length side by side;
    # "auto": varlen where the model's attention can be told where rows end
    activation_checkpointing: bool = False  # keep only each layer's input, compute the rest again on the way back
    offload_optimizer: bool = False  # master weights and Adam's moments stay in host memory
    offload_parameters: bool = False  # so do the shards of the parameters; needs zero_stage=3

    def __post_init__(self) -> None:
        require(self.steps >= 1, "train.steps", self.steps, "must be at least 1")
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "must be above 0")
        require(self.warmup_steps >= 0, "train.warmup_steps", self.warmup_steps, "must not be negative")
        require(self.max_grad_norm > 0, "train.max_grad_norm", self.max_grad_norm, "must be above 0")
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

    transport: str = "auto"  # "object_store"; "ipc": memory that policy rank i and engine i of one GPU (or host) share;
    # "broadcast": NCCL between GPUs, gloo between CPUs; "disk"; "auto": what fits the cluster
    bucket_mib: int = 256  # what a transfer holds on top of the weights; a larger tensor goes alone
    directory: str | None = None  # for transport=disk, seen by every node; null is the run's directory
    verify_weights: bool = False  # after each transfer compare a checksum of every tensor on both sides

    def __post_init__(self) -> None:
        choices = ("auto", "object_store", "ipc", "broadcast", "disk")
        require_one_of(choices, "sync.transport", self.transport)
        require(self.bucket_mib > 0, "sync.bucket_mib", self.bucket_mib, "must be at least 1")
