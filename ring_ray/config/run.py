"""A whole run."""

from dataclasses import dataclass, field

from ring_ray.config.algo import AlgoConfig
from ring_ray.config.check import require, require_one_of
from ring_ray.config.cluster import ClusterConfig
from ring_ray.config.engines import ModelConfig, RolloutConfig, SyncConfig, TrainConfig


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
        cluster = self.cluster
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
        require(
            self.algo.objective != "likelihood",
            "algo.objective",
            self.algo.objective,
            "must be clip, gspo or cispo: the likelihood knows no reward, it is what the cold start uses",
        )
        require(
            self.transport != "ipc" or (cluster.colocate and cluster.rollout.workers <= cluster.policy.workers),
            "sync.transport",
            self.transport,
            "engine i shares memory with policy rank i: needs cluster.colocate=true and at least as many "
            f"cluster.policy.workers={cluster.policy.workers} as cluster.rollout.workers={cluster.rollout.workers}",
        )
        require(
            self.algo.kl_coefficient == 0 or (cluster.reference.gpus > 0) == (cluster.policy.gpus > 0),
            "cluster.reference.gpus",
            cluster.reference.gpus,
            f"the reference runs where the policy runs: cluster.policy.gpus={cluster.policy.gpus}",
        )
        if cluster.device == "cuda":
            self._check_gpus()

    def _check_gpus(self) -> None:
        """Each worker sees the devices that it needs, and nobody else's."""
        cluster, tensor_parallel = self.cluster, self.rollout.tensor_parallel
        reference_gpus = cluster.reference.gpus if self.algo.kl_coefficient > 0 else 0.0
        if cluster.colocate:
            total = cluster.policy.gpus + cluster.rollout.gpus + reference_gpus
            require(
                round(total, 4) <= 1,
                "cluster.colocate",
                True,
                f"policy, rollout and reference i share one GPU, not {total:g}",
            )
            require(
                tensor_parallel == 1,
                "rollout.tensor_parallel",
                tensor_parallel,
                "an engine on several GPUs has them to itself: cluster=disaggregated",
            )
            require(
                self.transport != "broadcast",
                "sync.transport",
                self.transport,
                "NCCL has no place for two processes on one GPU: use ipc or object_store",
            )
            return
        for key, gpus, needed in (
            ("policy", cluster.policy.gpus, 1),
            ("rollout", cluster.rollout.gpus, tensor_parallel),
            ("reference", reference_gpus, 1),
        ):
            require(gpus in (0, needed), f"cluster.{key}.gpus", gpus, f"must be {needed}: a worker's own, whole GPUs")

    @property
    def transport(self) -> str:
        """How weights travel."""
        if self.sync.transport != "auto":
            return self.sync.transport
        if not self.cluster.colocate:
            return "broadcast"
        paired = self.cluster.rollout.workers <= self.cluster.policy.workers
        return "ipc" if self.cluster.take_turns and paired else "object_store"
