"""Accuracy on prompts that are never trained on."""

import asyncio
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from ring_ray.roles import RewardRole, RolloutLostError, RolloutRef, RolloutRole
from ring_ray.types import Prompt, Reward, Rollout, Sequence, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    correct: int
    n: int  # responses that were judged
    unjudged: int = 0  # the verifier failed or timed out on these, so they count neither way
    domains: dict[str, float] = field(default_factory=dict)  # value of those domains of which a response was judged

    @property
    def value(self) -> float:
        return self.correct / self.n


class EvaluationError(RuntimeError):
    """No response could be judged, so there is no accuracy."""


async def evaluate(prompts: Many[Prompt], rollout: RolloutRole, reward: RewardRole) -> Accuracy:
    """Sample one response a prompt and count the correct ones. The engines must be idle and accepting work."""

    async def judge(prompt: Prompt) -> Reward:
        start = RolloutRef(Rollout(prompt=prompt, sequences=(Sequence.start(prompt.token_ids),)))
        while True:
            try:
                if generated := await rollout.generate(start):
                    (judgement,) = await reward.score(generated[0])
                    return judgement
            except RolloutLostError:
                continue  # from the beginning

    judgements = await asyncio.gather(*(judge(prompt) for prompt in prompts))
    verdicts = [judgement.verdict for judgement in judgements if judgement.verdict.reached]
    if not verdicts:
        raise EvaluationError(f"none of {len(prompts)} responses could be judged, the first: {judgements[0].reason}")
    domains: dict[str, list[bool]] = {}
    for prompt, judgement in zip(prompts, judgements, strict=True):
        if judgement.verdict.reached:
            domains.setdefault(prompt.domain, []).append(judgement.verdict is Verdict.CORRECT)
    return Accuracy(
        correct=verdicts.count(Verdict.CORRECT),
        n=len(verdicts),
        unjudged=len(judgements) - len(verdicts),
        domains={domain: sum(correct) / len(correct) for domain, correct in sorted(domains.items())},
    )
