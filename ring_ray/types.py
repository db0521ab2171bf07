"""The data that flows through a run, end to end.

::

    conf --> PromptSource --Prompt--> RolloutWorker (vLLM) --Rollout--> RewardWorker --Reward--> group
                  ^                    |     ^                                                    | advantages
                  | back-pressure      |     '-- unfinished sequences resume here                 v
                  '--------------------'---------------------------------------------------- RolloutBuffer
                                                                                                  | take(N): exactly N
    weights (version v+1) <-- PolicyWorker x R (DeepSpeed) <-- TokenBatch <-- ReferenceWorker <---' tokens; the tail of
                                       |                                                            the cut one stays
                                       '--> StepMetrics --> Tracker (W&B, metrics.jsonl, progress, report)

Every type is frozen and holds numpy arrays, so that Ray's object store passes it between actors without a copy.
Dimensions: P prompt tokens, T response tokens, K responses to one prompt.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]
ExpertArray: TypeAlias = npt.NDArray[np.int16]

FinishReason: TypeAlias = Literal["stop", "length", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question, rendered and tokenized.

    ``index`` counts the prompts in the order in which the run issued them; groups enter a batch in that order.
    """

    index: int
    id: str  # unique within the data set, e.g. "sums-17" or "train.jsonl:42"
    domain: str  # such as "math"
    text: str  # what the user asked, before the chat template
    token_ids: IntArray  # [P], chat template applied, generation prompt included
    verifier: str  # name in the verifier registry
    answer: str  # what the verifier compares with: text, or JSON where the verifier needs more than one value


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One response, finished or not, with what is needed to resume it or to train on it."""

    prompt_ids: IntArray  # [P]
    response_ids: IntArray  # [T]
    logprobs: FloatArray  # [T], nats: log-prob of each token under the policy version that sampled it
    versions: IntArray  # [T], policy version that sampled each token; never decreases
    finish_reason: FinishReason
    # [P + T - 1, layers, k], int16: the experts that each position was sent to when the token after it was sampled;
    # None where they were not asked for
    routed_experts: ExpertArray | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason != "unfinished"

    def __len__(self) -> int:
        """Response tokens: the only ones that the budget counts."""
        return len(self.response_ids)

    @staticmethod
    def start(prompt_ids: IntArray) -> "Sequence":
        """A sequence that has its prompt and no token yet."""
        ids, logprobs = np.empty(0, np.int32), np.empty(0, np.float32)
        return Sequence(
            prompt_ids=prompt_ids, response_ids=ids, logprobs=logprobs, versions=ids, finish_reason="unfinished"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A prompt with its K responses as they stand; a group, once all are finished and scored."""

    prompt: Prompt
    sequences: tuple[Sequence, ...]  # K


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """What the controller learns of a `Rollout` without seeing its tokens. All counts are response tokens."""

    new_tokens: int  # sampled by the engine in this call
    in_flight_tokens: int  # held by sequences that are not finished
    finished_tokens: int  # held by sequences that are
    unfinished: int  # sequences

    @property
    def finished(self) -> bool:
        return self.unfinished == 0


class Verdict(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    TIMED_OUT = "timed out"
    FAILED = "failed"

    @property
    def reached(self) -> bool:
        """Whether the response was judged at all. If not, the fault is not its own: that is never a score of 0."""
        return self not in (Verdict.TIMED_OUT, Verdict.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    score: float
    verdict: Verdict
    reason: str  # one short line for people
    seconds: float = 0.0  # that the verdict took


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSample:
    """One response and its reward, in text, for people to read."""

    prompt_index: int
    domain: str
    prompt: str
    response: str
    reward: Reward
    tokens: int  # of the response
    first_version: int  # policy versions that its first and its last token were sampled under
    last_version: int
    truncated: bool  # ended by the length limit

    @property
    def carried(self) -> bool:
        """Whether it was interrupted by a weight sync and went on under new weights."""
        return self.first_version != self.last_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The half-open span [start, stop) of a finished response that is to be trained.

    Tokens before ``start`` are context: they carry no loss here, an earlier step trained or evicted them.
    """

    sequence: Sequence
    start: int
    stop: int
    advantage: float
    prompt_index: int  # of the group that it belongs to

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """What one optimizer step trains on. With ``cutoff: token`` the spans add up to exactly ``token_budget``."""

    segments: tuple[Segment, ...]
    token_budget: int  # Φ, response tokens, over all ranks
    version: int  # policy version that is about to be updated

    @property
    def trained_tokens(self) -> int:
        return sum(len(segment) for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReward:
    """What the responses to one domain's prompts earned, and what it took to judge them."""

    mean: float  # nan where every group was dropped
    accuracy: float  # share of the responses that are correct; nan where every group was dropped
    failures: int = 0  # verdicts that are timed out or failed: their groups are dropped, never scored 0
    seconds_p50: float = 0.0  # of one verdict, those that failed included
    seconds_p99: float = 0.0

    @staticmethod
    def of(rewards: list[Reward], dropped: list[Reward]) -> "DomainReward":
        """``dropped`` are the rewards of the groups of which a verdict was not reached. Not both may be empty."""
        scored = len(rewards) or math.nan
        # One whose worker died has no time of its own.
        seconds = [reward.seconds for reward in (*rewards, *dropped) if reward.seconds] or [0.0]
        return DomainReward(
            mean=sum(reward.score for reward in rewards) / scored,
            accuracy=sum(reward.verdict is Verdict.CORRECT for reward in rewards) / scored,
            failures=sum(not reward.verdict.reached for reward in dropped),
            seconds_p50=float(np.percentile(seconds, 50)),
            seconds_p99=float(np.percentile(seconds, 99)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """A `TokenBatch` in numbers: what the controller sees of it. Lengths are response tokens."""

    trained_tokens: int  # of a step that is skipped, those that it was to train
    carried_tokens: int  # tail of the cut response: it comes first in the next step
    segments: int
    groups: int
    reward_mean: float  # over the groups that were scored since the last batch, or if none was, before it
    reward_std: float
    domains: dict[str, DomainReward]  # the same rewards, by the prompts' domain
    response_length_mean: float  # over the responses that completed since the last batch, or if none did, before it
    trained_response_length_mean: float  # over the responses in this batch: far from the line above means a length bias
    lost_response_length_mean: float  # over those that lost tokens to eviction or a drop; nan where none did
    truncated_fraction: float  # completed responses that hit the length limit
    zero_advantage_fraction: float  # completed groups whose responses all earned the same
    staleness_mean: float  # policy versions between sampling and training, over the trained tokens
    staleness_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where every response token ever generated is now. Each is in exactly one place."""

    generated: int = 0
    in_flight: int = 0  # sequence not finished
    waiting: int = 0  # sequence finished, its group not complete or not scored
    queued: int = 0  # in the buffer, to be trained
    trained: int = 0
    filtered: int = 0  # group with zero advantage, left out by option
    evicted: int = 0  # older than max_staleness policy versions
    dropped: int = 0  # left over with ``carry: false``, in a group whose verifier failed, or in a skipped step

    @property
    def accounted(self) -> int:
        return self.in_flight + self.waiting + self.queued + self.trained + self.filtered + self.evicted + self.dropped

    @property
    def balanced(self) -> bool:
        return self.generated == self.accounted


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMetrics:
    """What one optimizer step reports. Means are over the trained tokens of all ranks."""

    loss: float
    grad_norm: float  # before clipping; inf for whatever is not finite where ZeRO shards
    learning_rate: float
    entropy: float  # nats per token
    kl: float  # k3 estimate against the reference policy, nats per token; 0 without one
    clip_fraction: float
    ratio_max: float
    behaviour_kl: float  # k3 estimate between the sampling and the training policy, nats per token
    truncated_fraction: float  # trained tokens whose correction weight was cut at its upper bound
    masked_fraction: float  # trained tokens whose correction weight was set to 0
    balance_loss: float  # 1 when the experts are evenly loaded; 0 for dense models
    z_loss: float
    micro_batches: int  # per rank
    skipped: bool  # loss or gradient was not finite: nothing was trained


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One line of metrics.jsonl."""

    step: int
    batch: BatchSummary
    update: UpdateMetrics
    ledger: Ledger
    token_budget: int
    step_seconds: float
    phase_seconds: dict[str, float]  # wait, reference, update, sync
    generated_tokens: int  # sampled during this step
    memory_bytes: dict[str, int] = field(default_factory=dict)  # held at the end of "<phase>/<role>", by turns only


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something broke and was made good. A line of faults.jsonl."""

    kind: str  # what broke: rollout, engine, reward, policy, reference, buffer, data or collapse
    what: str  # a sentence
    seconds: float  # from its being noticed to its being made good
