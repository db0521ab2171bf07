"""Rollouts for tests of the buffer, small and by hand."""

import numpy as np

from ring_ray.types import FinishReason, Prompt, Reward, Rollout, Segment, Sequence, Verdict

Response = tuple[int, int]  # prompt index, response
Token = tuple[int, int, int]  # prompt index, response, position


def sequence(response: int, versions: list[int], finish_reason: FinishReason = "stop") -> Sequence:
    """Its ids name the response and the position: 1000 · response + t."""
    length = len(versions)
    return Sequence(
        prompt_ids=np.zeros(2, np.int32),
        response_ids=np.arange(length, dtype=np.int32) + 1000 * response,
        logprobs=-np.arange(length, dtype=np.float32),
        versions=np.array(versions, np.int32),
        finish_reason=finish_reason,
    )


def rollout(index: int, *sequences: Sequence) -> Rollout:
    prompt = Prompt(
        index=index,
        id=f"p-{index}",
        domain="math",
        text="1+1",
        token_ids=np.zeros(2, np.int32),
        verifier="math",
        answer="2",
    )
    return Rollout(prompt=prompt, sequences=sequences)


def rollout_of(index: int, *lengths: int) -> Rollout:
    return rollout(index, *(sequence(response, [0] * length) for response, length in enumerate(lengths)))


def rewards(*scores: float) -> tuple[Reward, ...]:
    return tuple(
        Reward(score=score, verdict=Verdict.CORRECT if score else Verdict.WRONG, reason="") for score in scores
    )


FAILED = Reward(score=0.0, verdict=Verdict.FAILED, reason="the verifier broke")


def response_of(segment: Segment) -> Response:
    return segment.prompt_index, int(segment.sequence.response_ids[0]) // 1000


def tokens_of(segment: Segment) -> list[Token]:
    index, response = response_of(segment)
    ids = segment.sequence.response_ids[segment.start : segment.stop]
    return [(index, response, int(one) - 1000 * response) for one in ids]
