"""What a reward model and a judge have in common as verifiers."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ring_ray.config import EndpointConfig, LengthConfig
from ring_ray.rewards.base import GroupVerifier, Response, correct, wrong
from ring_ray.rewards.open_ended.length import length_controlled
from ring_ray.types import Prompt, Reward

GOOD = 0.5  # a score from which a response counts as correct in accuracies


@dataclass(frozen=True, slots=True)
class Opinion:
    """What is thought of a response, whatever its length."""

    score: float  # from 0 to 1
    reason: str  # one short line


class OpenEndedVerifier(GroupVerifier):
    """Scores between 0 and 1: what is thought of a text, less what length costs. Equal texts are assessed once."""

    def __init__(self, config: EndpointConfig, length: LengthConfig) -> None:
        self._timeout_seconds, self._length = config.timeout_seconds, length

    @abstractmethod
    def assess(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[Opinion | Reward]:
        """For each text an opinion, or the TIMED_OUT or FAILED reward that says why there is none."""

    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> list[Reward]:
        """Each verdict takes as long as all of them."""
        start = time.perf_counter()
        texts = list(dict.fromkeys(response.text for response in responses))
        found = dict(zip(texts, self.assess(prompt, texts), strict=True))
        rewards = [self._reward(response, found[response.text]) for response in responses]
        seconds = time.perf_counter() - start
        return [replace(reward, seconds=seconds) for reward in rewards]

    def seconds(self, responses: int) -> float:
        return self._timeout_seconds

    def _reward(self, response: Response, found: Opinion | Reward) -> Reward:
        if isinstance(found, Reward):
            return found
        score = length_controlled(found.score, response.tokens, self._length)
        reason = found.reason
        if score < found.score:
            reason += f"; {score:.3g} after what {response.tokens} tokens cost"
        return correct(reason, score) if score >= GOOD else wrong(reason, score)
