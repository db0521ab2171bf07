"""The algorithm."""

from dataclasses import dataclass

from ring_ray.config.check import require, require_one_of
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class AlgoConfig:
    """C3PO and its baselines, as data (Ring-lite, arXiv 2506.14731, section 3)."""

    name: str = key("c3po", "Name of the algorithm in progress lines and reports.")
    objective: str = key(
        "clip",
        "What is maximised: `clip` (PPO's, clips the ratio of each token), `gspo` (clips one ratio of a whole "
        "response), `cispo` (clips the weight of a token, not its gradient) or `likelihood` (supervised: what the cold "
        "start uses, refused for RL).",
    )
    token_budget: int = key(8192, "Φ: response tokens that carry loss in one optimizer step, over all ranks.")
    selection: str = key("tokens", "A step trains `tokens` (fills the budget) or `groups` (`groups_per_step`, whole).")
    groups_per_step: int = key(0, "Prompts, each with all its responses, that a step trains where selection=groups.")
    cutoff: str = key(
        "token", "Where the budget ends inside a response: cut it there (`token`) or keep it (`response`)."
    )
    carry: bool = key(True, "Keep what a step did not reach for the next one; false drops it.")
    aggregation: str = key(
        "budget",
        "Weight of a token in the loss: `budget` (1/Φ), `token` (1/trained tokens of the step) or `response` "
        "(1/(responses x length of its own)).",
    )
    group_size: int = key(8, "K: responses to each prompt, at least 2.")
    clip_range: float = key(0.2, "ε: ratios are clipped at 1 - ε and 1 + ε; at most 1.")
    clip_range_high: float | None = key(None, "The upper clip is 1 + this (DAPO's clip-higher); null means clip_range.")
    behaviour: str = key(
        "rollout",
        "Ratios are taken against the log-probs that were sampled with (`rollout`), or those of this very forward pass "
        "(`recomputed`), which one optimizer step a batch makes free.",
    )
    correction: str = key(
        "none",
        "Weight of a token by π_train / π_rollout, for what behaviour=recomputed leaves out: `truncated` (at "
        "correction_high), `icepop` (0 outside of correction_low ... correction_high) or `none`.",
    )
    correction_low: float = key(0.5, "Lower end of IcePop's range of π_train / π_rollout, below 1.")
    correction_high: float = key(
        2.0, "Upper end of π_train / π_rollout, above 1: 2 is usual for `truncated`, IcePop's paper has 5."
    )
    replay_routing: bool = key(False, "Train each token through the experts that the rollout chose for it.")
    kl_coefficient: float = key(
        0.0, "β, weight of the KL divergence from the reference; above 0 a reference is spawned."
    )
    entropy_coefficient: float = key(5e-4, "α_ent, weight of the entropy bonus; the paper's value.")
    balance_coefficient: float = key(1e-5, "α_bal, weight of the experts' load-balance loss; the paper's value.")
    z_coefficient: float = key(1e-7, "α_z, weight of the router's z-loss; the paper's value.")
    advantage_epsilon: float = key(
        1e-6, "Added to the deviation of a group's rewards, which divides its advantages; in units of reward."
    )
    filter_zero_advantage: bool = key(False, "Leave out groups whose responses all earned the same.")
    max_staleness: int = key(
        2, "Policy versions that may lie between the sampling of a token and its training; older tokens are evicted."
    )

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
        for name in ("kl_coefficient", "entropy_coefficient", "balance_coefficient", "z_coefficient"):
            require(getattr(self, name) >= 0, f"algo.{name}", getattr(self, name), "must not be negative")
