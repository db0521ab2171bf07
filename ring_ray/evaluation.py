"""Accuracy on prompts that are never trained on."""

import asyncio
from collections.abc import Sequence as Many
from dataclasses import dataclass

from ring_ray.roles import RewardRole, RolloutRef, RolloutRole
from ring_ray.types import Prompt, Rollout, Sequence, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n


class EvaluationError(RuntimeError):
    """A verdict could not be reached, so an accuracy would be a guess."""


async def evaluate(prompts: Many[Prompt], rollout: RolloutRole, reward: RewardRole) -> Accuracy:
    """Sample one response a prompt and count the correct ones. The engines must be idle and accepting work."""

    async def verdict(prompt: Prompt) -> Verdict:
        start = RolloutRef(Rollout(prompt=prompt, sequences=(Sequence.start(prompt.token_ids),)))
        finished, _ = await rollout.generate(start)
        (score,) = await reward.score(finished)
        if score.verdict is Verdict.FAILED:
            raise EvaluationError(f"the verifier failed on {prompt.id}: {score.reason}")
        return score.verdict

    verdicts = await asyncio.gather(*(verdict(prompt) for prompt in prompts))
    return Accuracy(correct=verdicts.count(Verdict.CORRECT), n=len(verdicts))
