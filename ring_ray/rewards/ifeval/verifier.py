"""Instruction following by rules: every instruction of the prompt, strictly or loosely."""

from collections.abc import Iterator
from typing import Any

import msgspec

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import AnswerError, correct, failed, read_answer, wrong
from ring_ray.rewards.ifeval.instructions import bind
from ring_ray.rewards.ifeval.language import MissingResourceError
from ring_ray.types import Prompt, Reward


class Instructions(msgspec.Struct):
    """``prompt.answer``, with the names of IFEval's own columns."""

    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]  # of each instruction


class InstructionVerifier:
    """Scores 1 where the response follows every instruction of ``prompt.answer``, else 0.

    With ``loose`` an instruction counts as followed where it is without the response's first line, its last line, both,
    or its asterisks: what introduces or marks up the answer itself.
    """

    def __init__(self, config: RewardConfig, *, loose: bool = False) -> None:
        """``config.timeout_seconds`` is not needed: the work is bounded by the length of the response."""
        self._loose = loose

    def verify(self, prompt: Prompt, response: str) -> Reward:
        record = read_answer(prompt, Instructions)
        names = record.instruction_id_list
        if not names or len(names) != len(record.kwargs):
            raise AnswerError(f"{prompt.id}: {len(names)} instructions with {len(record.kwargs)} sets of arguments")
        texts = [text for text in (_variants(response) if self._loose else (response,)) if text.strip()]
        for name, arguments in zip(names, record.kwargs, strict=True):
            try:
                follows = bind(name, arguments)
                followed = any(follows(text) for text in texts)
            except (MissingResourceError, ValueError, TypeError) as error:
                return failed(f"{prompt.id}: {name}: {error}")
            if not followed:
                return wrong(f"does not follow {name}")
        return correct("follows every instruction")


def _variants(response: str) -> Iterator[str]:
    lines = response.split("\n")
    for text in (response, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])):
        shown = text if text is response else text.strip()
        yield shown
        yield shown.replace("*", "")
