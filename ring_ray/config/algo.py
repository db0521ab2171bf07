"""The algorithm."""

from dataclasses import dataclass

from ring_ray.config.check import require, require_one_of


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
