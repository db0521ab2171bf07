"""The schema of a run: every key that `conf/` may set, its default, its meaning and its limits.

Plain dataclasses, no Hydra: `compose.py` turns composed YAML into a `RunConfig`, and a test or a notebook can build one
by hand. Values are checked where they are defined, so a bad one is refused before anything starts.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Device: TypeAlias = Literal["cpu", "cuda"]


class ConfigError(ValueError):
    """A value that the run can't work with. The message names the key, the value and what would be right."""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: {expected}")


def require_one_of(choices: tuple[str, ...], key: str, value: str) -> None:
    require(value in choices, key, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What is trained."""

    path: str | None = None  # Hugging Face model directory or hub name; null makes the tiny MoE of the quickstart
    dtype: str = "float32"  # float32 or bfloat16
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require_one_of(("float32", "bfloat16"), "model.dtype", self.dtype)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where prompts come from."""

    source: str = "sums"  # "sums" (reasoning-gym, by seed) or "jsonl" (any local JSONL or parquet file)
    path: str | None = None  # the file, for source=jsonl; columns prompt, answer, and optionally domain, verifier
    eval_path: str | None = None  # held-out file; null holds out eval_fraction of path
    eval_fraction: float = 0.125  # share of the distinct prompts that is never trained on
    instruction: str = ""  # appended to each prompt of the file, such as the paper's "Please reason step by step, ..."
    max_digits: int = 2  # digits of each operand, for source=sums
    size: int = 20000  # draws, for source=sums; equal ones count once, held-out ones are among them
    domain: str = "math"  # for rows that name none
    verifier: str = "math"  # for rows that name none: an entry of the verifier registry

    def __post_init__(self) -> None:
        require_one_of(("sums", "jsonl"), "data.source", self.source)
        require(
            self.source != "jsonl" or self.path is not None, "data.path", self.path, "data=jsonl needs data.path=FILE"
        )
        require(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "must be between 0 and 1")
        require(1 <= self.max_digits <= 6, "data.max_digits", self.max_digits, "must be from 1 to 6")
        require(self.size >= 2, "data.size", self.size, "must be at least 2")


@dataclass(kw_only=True, slots=True)
class AlgoConfig:
    """C3PO and its baselines, as data (Ring-lite, arXiv 2506.14731, section 3)."""

    name: str = "c3po"
    objective: str = "clip"  # "clip", "gspo" (clips whole responses), "cispo" (clips the weight, not the gradient), or
    # "likelihood": supervised, what the cold start uses
    token_budget: int = 8192  # Φ: response tokens that carry loss in one optimizer step, over all ranks
    selection: str = "tokens"  # "tokens": fill the budget; "groups": groups_per_step whole groups
    groups_per_step: int = 0  # for selection=groups
    cutoff: str = "token"  # "token": cut the last response at Φ; "response": keep it whole
    carry: bool = True  # keep what was not reached for the next step; false drops it
    aggregation: str = "budget"  # token weight: "budget" 1/Φ, "token" 1/trained tokens of the step, "response"
    # 1/(responses x own length)
    group_size: int = 8  # K
    clip_range: float = 0.2  # ε: ratios are clipped at 1 - ε and 1 + ε
    clip_range_high: float | None = None  # 1 + this is the upper clip in place of 1 + ε (DAPO's clip-higher)
    behaviour: str = "rollout"  # ratios are taken against "rollout": the log-probs that were sampled with, or
    # "recomputed": those of this very forward pass; one optimizer step a batch makes that free
    correction: str = "none"  # for what "recomputed" leaves out, the weight π_train / π_rollout of each token:
    # "truncated" (at correction_high), "icepop" (0 outside correction_low ... correction_high), or "none"
    correction_low: float = 0.5
    correction_high: float = 2.0  # usual for "truncated"; IcePop's paper has 5
    replay_routing: bool = False  # train each token through the experts that the rollout chose for it
    kl_coefficient: float = 0.0  # β; above 0 a reference policy is spawned
    entropy_coefficient: float = 5e-4  # α_ent
    balance_coefficient: float = 1e-5  # α_bal
    z_coefficient: float = 1e-7  # α_z
    advantage_epsilon: float = 1e-6
    filter_zero_advantage: bool = False  # leave out groups whose responses all earned the same
    max_staleness: int = 2  # policy versions between sampling and training; older tokens are evicted

    def __post_init__(self) -> None:
        require(self.token_budget > 0, "algo.token_budget", self.token_budget, "must be at least 1 token")
        require_one_of(("clip", "gspo", "cispo", "likelihood"), "algo.objective", self.objective)
        require_one_of(("tokens", "groups"), "algo.selection", self.selection)
        require(
            self.selection != "groups" or self.groups_per_step > 0,
            "algo.groups_per_step",
            self.groups_per_step,
            "must be at least 1 where algo.selection=groups",
        )
        require_one_of(("token", "response"), "algo.cutoff", self.cutoff)
        require_one_of(("budget", "token", "response"), "algo.aggregation", self.aggregation)
        require_one_of(("rollout", "recomputed"), "algo.behaviour", self.behaviour)
        require_one_of(("none", "truncated", "icepop"), "algo.correction", self.correction)
        require(
            self.correction == "none" or self.behaviour == "recomputed",
            "algo.correction",
            self.correction,
            "needs algo.behaviour=recomputed: a ratio against the rollout already holds the whole difference",
        )
        require(
            0 < self.correction_low < 1 < self.correction_high,
            "algo.correction_low",
            self.correction_low,
            f"must be in (0, 1), and algo.correction_high={self.correction_high} above 1",
        )
        require(
            self.group_size >= 2, "algo.group_size", self.group_size, "advantages need at least 2 responses a prompt"
        )
        require(self.groups_per_step >= 0, "algo.groups_per_step", self.groups_per_step, "must not be negative")
        require(self.advantage_epsilon > 0, "algo.advantage_epsilon", self.advantage_epsilon, "must be above 0")
        require(0 < self.clip_range <= 1, "algo.clip_range", self.clip_range, "must be above 0 and at most 1")
        high = self.clip_range_high
        require(high is None or high > 0, "algo.clip_range_high", high, "must be above 0, or null")
        require(self.max_staleness >= 0, "algo.max_staleness", self.max_staleness, "must not be negative")
        for key in ("kl_coefficient", "entropy_coefficient", "balance_coefficient", "z_coefficient"):
            require(getattr(self, key) >= 0, f"algo.{key}", getattr(self, key), "must not be negative")


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


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """The cold start: supervised steps on generated scratch-pad demonstrations, until RL has a signal."""

    enabled: str = "auto"  # "auto": only for the tiny model that the run makes itself; "always", "never"
    max_steps: int = 400
    batch_size: int = 64  # demonstrations a step
    learning_rate: float = 2e-3
    target_accuracy: float = 0.3  # stop once T=1 accuracy on probe_prompts reaches this
    probe_every: int = 5  # steps
    probe_after: int = 80  # no probe before this step
    probe_prompts: int = 256

    def __post_init__(self) -> None:
        require_one_of(("auto", "always", "never"), "sft.enabled", self.enabled)
        require(self.learning_rate > 0, "sft.learning_rate", self.learning_rate, "must be above 0")
        require(0 < self.target_accuracy < 1, "sft.target_accuracy", self.target_accuracy, "must be between 0 and 1")
        for key in ("max_steps", "batch_size", "probe_every", "probe_prompts"):
            require(getattr(self, key) >= 1, f"sft.{key}", getattr(self, key), "must be at least 1")


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    prompts: int = 512  # held-out prompts, one response each, at the rollout's temperature

    def __post_init__(self) -> None:
        require(self.prompts >= 1, "evaluation.prompts", self.prompts, "must be at least 1")


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    timeout_seconds: float = 5.0  # of one verdict

    def __post_init__(self) -> None:
        require(self.timeout_seconds > 0, "reward.timeout_seconds", self.timeout_seconds, "must be above 0")


@dataclass(kw_only=True, slots=True)
class RoleResources:
    """Actors of one role and what each may use of the cluster; fractions share a core or a GPU."""

    workers: int = 1  # processes: ranks of the policy, engines of the rollout, the pool of the reward
    cpus: float = 0.25
    gpus: float = 0.0


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the actors run."""

    name: str = "local"
    address: str | None = None  # of a running Ray cluster; null starts one on this machine
    overlap: bool = True  # generation goes on while the policy trains; false interrupts it
    colocate: bool = True  # policy rank i, reference i and engine i share bundle i; false gives each its own
    take_turns: bool = False  # whoever is not at work gives its memory back; needs overlap=false
    placement_timeout_seconds: float = 60.0
    policy: RoleResources = field(default_factory=lambda: RoleResources(cpus=0.5))
    reference: RoleResources = field(default_factory=RoleResources)
    rollout: RoleResources = field(default_factory=lambda: RoleResources(cpus=0.5))
    reward: RoleResources = field(default_factory=RoleResources)
    buffer: RoleResources = field(default_factory=RoleResources)

    def __post_init__(self) -> None:
        for role in ("policy", "reference", "rollout", "reward", "buffer"):
            resources: RoleResources = getattr(self, role)
            require(resources.workers >= 1, f"cluster.{role}.workers", resources.workers, "must be at least 1")
            require(resources.cpus > 0, f"cluster.{role}.cpus", resources.cpus, "must be above 0")
            require(resources.gpus >= 0, f"cluster.{role}.gpus", resources.gpus, "must not be negative")
        require(self.buffer.workers == 1, "cluster.buffer.workers", self.buffer.workers, "there is only one")
        require(
            not (self.take_turns and self.overlap),
            "cluster.take_turns",
            self.take_turns,
            "needs cluster.overlap=false: who takes turns can't work at the same time",
        )
        require(
            (self.policy.gpus > 0) == (self.rollout.gpus > 0),
            "cluster.rollout.gpus",
            self.rollout.gpus,
            f"policy and rollout run on GPUs together or not at all: cluster.policy.gpus={self.policy.gpus}",
        )

    @property
    def device(self) -> Device:
        """What the engines run on: GPUs where the roles were given a share of one."""
        return "cuda" if self.policy.gpus > 0 else "cpu"


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    project: str = "ring_ray"
    wandb: str = "auto"  # "auto": online where a key is configured, else offline; "online", "offline", "disabled"
    progress: bool = True

    def __post_init__(self) -> None:
        require_one_of(("auto", "online", "offline", "disabled"), "tracking.wandb", self.wandb)


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that a run needs to know."""

    seed: int = 0
    run_dir: str = "outputs/run"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "must not be negative")
        require(
            self.rollout.top_p == 1,
            "rollout.top_p",
            self.rollout.top_p,
            "must be 1: ratios compare whole distributions, not what a cut leaves of them",
        )
        require(
            self.train.zero_stage > 0 or self.model.dtype == "float32",
            "train.zero_stage",
            self.train.zero_stage,
            "must be 1, 2 or 3 where model.dtype=bfloat16: without ZeRO there are no fp32 master weights",
        )
        cluster, engine_gpus = self.cluster, self.rollout.tensor_parallel
        require(
            cluster.rollout.gpus == 0 or engine_gpus == 1 or cluster.rollout.gpus == engine_gpus,
            "cluster.rollout.gpus",
            cluster.rollout.gpus,
            f"an engine with rollout.tensor_parallel={engine_gpus} needs as many whole GPUs",
        )
        require(
            self.transport != "ipc" or (cluster.colocate and cluster.rollout.workers <= cluster.policy.workers),
            "sync.transport",
            self.transport,
            "engine i shares memory with policy rank i: needs cluster.colocate=true and at least as many "
            f"cluster.policy.workers={cluster.policy.workers} as cluster.rollout.workers={cluster.rollout.workers}",
        )
        require(
            self.algo.kl_coefficient == 0 or (self.cluster.reference.gpus > 0) == (self.cluster.policy.gpus > 0),
            "cluster.reference.gpus",
            self.cluster.reference.gpus,
            f"the reference runs where the policy runs: cluster.policy.gpus={self.cluster.policy.gpus}",
        )

    @property
    def transport(self) -> str:
        """How weights travel."""
        if self.sync.transport != "auto":
            return self.sync.transport
        if not self.cluster.colocate:
            return "broadcast"
        return "ipc" if self.cluster.take_turns else "object_store"
