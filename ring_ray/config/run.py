"""A whole run."""

from dataclasses import asdict, dataclass, field

from ring_ray.config.algo import AlgoConfig
from ring_ray.config.check import require, require_one_of, require_storable
from ring_ray.config.checkpoint import CheckpointConfig
from ring_ray.config.cluster import ClusterConfig
from ring_ray.config.engines import ModelConfig, RolloutConfig, SyncConfig, TrainConfig
from ring_ray.config.guard import GuardConfig
from ring_ray.config.keys import flatten, key
from ring_ray.config.open_ended import JudgeConfig, LengthConfig, RewardModelConfig
from ring_ray.config.recovery import RecoveryConfig
from ring_ray.config.sandbox import SandboxConfig


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where prompts come from."""

    source: str = key("sums", "`sums` (reasoning-gym, by seed) or `jsonl` (any local JSONL or parquet file).")
    path: str | None = key(
        None,
        "The file, or a directory of files, for source=jsonl, with columns prompt, answer (text or an object), and "
        "optionally domain, verifier, demonstration.",
    )
    weights: dict[str, float] = key(
        {},
        "Each domain's share of the training prompts, such as `{math: 2, games: 1}`, whatever the number of its rows; "
        "empty issues every prompt equally often.",
    )
    eval_path: str | None = key(None, "Held-out file or directory; null holds out eval_fraction of path.")
    eval_fraction: float = key(0.125, "Share of the distinct prompts that is held out: evaluated, never trained on.")
    instruction: str = key(
        "", "Appended to each prompt of the file, such as the paper's `Please reason step by step, ...`."
    )
    max_digits: int = key(2, "Digits of each operand, 1 to 6, for source=sums.")
    size: int = key(20000, "Draws, for source=sums; equal ones count once, held-out ones are among them.")
    domain: str = key("math", "Domain of rows that name none: metrics are kept by domain.")
    verifier: str = key(
        "math", "Verifier of rows that name none: an entry of ring_ray/rewards/registry.py, or of reward.verifiers."
    )

    def __post_init__(self) -> None:
        require_one_of(("sums", "jsonl"), "data.source", self.source)
        require(
            self.source != "jsonl" or self.path is not None, "data.path", self.path, "data=jsonl needs data.path=FILE"
        )
        for domain, weight in self.weights.items():
            require(weight >= 0, f"data.weights.{domain}", weight, "must not be negative; 0 leaves the domain out")
        require(
            not self.weights or sum(self.weights.values()) > 0,
            "data.weights",
            dict(self.weights),
            "must not all be 0",
        )
        require(0 < self.eval_fraction < 1, "data.eval_fraction", self.eval_fraction, "must be between 0 and 1")
        require(1 <= self.max_digits <= 6, "data.max_digits", self.max_digits, "must be from 1 to 6")
        require(self.size >= 2, "data.size", self.size, "must be at least 2")


@dataclass(kw_only=True, slots=True)
class SftConfig:
    """The cold start: supervised steps on generated scratch-pad demonstrations, until RL has a signal."""

    enabled: str = key("auto", "`auto` (only for the tiny model that the run makes itself), `always` or `never`.")
    max_steps: int = key(400, "Optimizer steps after which it ends, whatever the accuracy.")
    batch_size: int = key(64, "Demonstrations of one step.")
    learning_rate: float = key(2e-3, "AdamW's, during the cold start.")
    target_accuracy: float = key(0.3, "It ends when this share of probe_prompts is answered right at temperature 1.")
    probe_every: int = key(5, "Steps from one such measurement to the next.")
    probe_after: int = key(80, "Steps before the first.")
    probe_prompts: int = key(256, "Prompts of one measurement, a response each.")

    def __post_init__(self) -> None:
        require_one_of(("auto", "always", "never"), "sft.enabled", self.enabled)
        require(self.learning_rate > 0, "sft.learning_rate", self.learning_rate, "must be above 0")
        require(0 < self.target_accuracy < 1, "sft.target_accuracy", self.target_accuracy, "must be between 0 and 1")
        for name in ("max_steps", "batch_size", "probe_every", "probe_prompts"):
            require(getattr(self, name) >= 1, f"sft.{name}", getattr(self, name), "must be at least 1")


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """How a model's accuracy is measured, before, between and after."""

    prompts: int = key(512, "Held-out prompts, one response each, at the rollout's temperature.")

    def __post_init__(self) -> None:
        require(self.prompts >= 1, "evaluation.prompts", self.prompts, "must be at least 1")


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """How responses are scored."""

    timeout_seconds: float = key(
        5.0,
        "Seconds that one verdict may take; of CPU time for math and science, so that a busy machine fails none. "
        "Code, judges and reward models have limits of their own.",
    )
    tolerance: float = key(0.01, "Relative tolerance of the verifier `science`, where a row names none.")
    verifiers: dict[str, str] = key(
        {},
        "Verifiers of your own by the names that rows call them, such as `{polite: my_rewards:Polite}`: what to import "
        "in the driver and in each reward worker, and to call with this section of the config.",
    )
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    length: LengthConfig = field(default_factory=LengthConfig)

    def __post_init__(self) -> None:
        require(self.timeout_seconds > 0, "reward.timeout_seconds", self.timeout_seconds, "must be above 0")
        require(0 <= self.tolerance < 1, "reward.tolerance", self.tolerance, "must be at least 0 and below 1")


WANDB_MODES = ("online", "offline", "disabled")


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where a run's numbers go."""

    project: str = key("ring_ray", "Project in W&B.")
    entity: str | None = key(None, "Team or user in W&B that the run belongs to; null is the key's own.")
    wandb: str = key(
        "auto",
        "W&B is `online`, `offline`, `disabled`, or `auto`: what WANDB_MODE says, else online where a key is "
        "configured and offline where none is.",
    )
    group: str | None = key(None, "Group of runs in W&B; a sweep names its own.")
    job_number: int | None = key(None, "Number of this run in its sweep; the sweep sets it.")
    overrides: list[str] = key([], "What the command line changed; jobs/train.py fills it in.")
    artifacts: bool = key(False, "Upload the models and the checkpoints that stay to W&B.")
    sampled_rollouts: int = key(4, "Responses of each step that are kept for people to read; 0 for none.")
    progress: bool = key(True, "A line a step on stderr and, on a terminal, a bar; stages are told in any case.")

    def __post_init__(self) -> None:
        require_one_of(("auto", *WANDB_MODES), "tracking.wandb", self.wandb)
        require(self.sampled_rollouts >= 0, "tracking.sampled_rollouts", self.sampled_rollouts, "must not be negative")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Everything that a run needs to know."""

    seed: int = key(
        0, "Of the tiny model, the data, their order and sampling; what overlaps in time still differs from run to run."
    )
    run_dir: str = key(
        "outputs/run", "Directory that the run writes to; on the command line set hydra.run.dir instead."
    )
    resume: str = key(
        "auto",
        "`auto` (go on from the newest complete checkpoint of this run, if there is one), `never` (begin anew) or a "
        "checkpoint's directory or URL to go on from.",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for name, value in flatten(asdict(self)):
            require_storable(name, value)
        cluster = self.cluster
        require(0 <= self.seed < 2**31, "seed", self.seed, "must be from 0 to 2 ** 31 - 1")
        require(self.resume != "", "resume", self.resume, "must be auto, never or a checkpoint's directory or URL")
        require(
            self.rollout.top_p == 1,
            "rollout.top_p",
            self.rollout.top_p,
            "must be 1: ratios compare whole distributions, not what a cut leaves of them",
        )
        require(
            not (self.rollout.deterministic and cluster.overlap),
            "rollout.deterministic",
            self.rollout.deterministic,
            "needs cluster.overlap=false, as with cluster=colocated: else the clock decides where a response is cut",
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
            self.guard.action != "rollback" or self.checkpoint.every > 0,
            "guard.action",
            self.guard.action,
            "needs checkpoints to go back to: checkpoint.every must not be 0",
        )
        checkpoint = self.checkpoint
        require(
            self.guard.action != "rollback" or (checkpoint.keep_last - 1) * checkpoint.every >= self.guard.window,
            "checkpoint.keep_last",
            checkpoint.keep_last,
            f"must reach back over guard.window={self.guard.window} steps where guard.action=rollback",
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
        gpus = {role: getattr(cluster, role).gpus for role in ("policy", "rollout", *self.optional_roles)}
        if cluster.colocate:
            total = sum(gpus.values())
            require(
                round(total, 4) <= 1,
                "cluster.colocate",
                True,
                f"{', '.join(gpus)} i share one GPU, not {total:g}",
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
        for role, share in gpus.items():
            needed = tensor_parallel if role == "rollout" else 1
            require(
                share in (0, needed), f"cluster.{role}.gpus", share, f"must be {needed}: a worker's own, whole GPUs"
            )

    @property
    def optional_roles(self) -> tuple[str, ...]:
        """Those of the cluster's roles that not every run has."""
        wanted = {"reference": self.algo.kl_coefficient > 0, "reward_model": self.reward.model.path is not None}
        return tuple(role for role, is_wanted in wanted.items() if is_wanted)

    @property
    def transport(self) -> str:
        """How weights travel."""
        if self.sync.transport != "auto":
            return self.sync.transport
        if not self.cluster.colocate:
            return "broadcast"
        paired = self.cluster.rollout.workers <= self.cluster.policy.workers
        return "ipc" if self.cluster.take_turns and paired else "object_store"
