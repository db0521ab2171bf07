"""Multiple choice: one letter, for evaluation as well as for training."""

import re

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import AnswerError, correct, unparsable, wrong
from ring_ray.rewards.boxed import last_boxed, shorten
from ring_ray.types import Prompt, Reward

_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|boldsymbol)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"[\s(*]*([A-Z])(?:\s*[).:*].*|\s+)?", re.DOTALL)  # "B", "(B)", "B. because": not "A cat"
_AND = r"(?:[\s().*,;/&$]|\bor\b|\band\b)*"  # what stands between letters, and around them
_SEVERAL = re.compile(rf"{_AND}[A-Z](?:{_AND}\b[A-Z]\b)+{_AND}")
_SENTENCE = re.compile(
    r"(?i:\banswer(?:\s+is)?\b)[\s:]*(?:[(*$]|\\\()*([A-Z])(?![\w'’])"
    r"(?!(?:[).*$]|\\\))*\s*(?:[,/&]|or\b|and\b)\s*[(*$]*[A-Z]\b)"
)
_DATA = re.compile(r"\W*([A-Z])\W*")


class ChoiceVerifier:
    """Scores 1 where the response names the letter of ``prompt.answer``, else 0.

    The letter stands in the last ``\\boxed{}``; where there is none, after the last "answer is" or "Answer:".
    """

    def __init__(self, config: RewardConfig) -> None:
        """``config.timeout_seconds`` is not needed: the work is bounded by the length of the response."""

    def verify(self, prompt: Prompt, response: str) -> Reward:
        expected = _DATA.fullmatch(_WRAPPER.sub(r"\1", prompt.answer))
        if expected is None:
            raise AnswerError(
                f"{prompt.id}: the expected answer {shorten(prompt.answer)} is not one letter from A to Z"
            )
        boxed = last_boxed(response)
        if boxed is None:
            sentences = _SENTENCE.findall(response)
            given = sentences[-1] if sentences else None
        else:
            given = _letter(boxed)
        if given is None:
            where = "in the response" if boxed is None else f"in {shorten(boxed)}"
            return unparsable(f"not one letter {where}")
        return correct(f"{given} is right") if given == expected[1] else wrong(f"{given} instead of {expected[1]}")


def _letter(text: str) -> str | None:
    """The one letter that the text begins with; None where it names several, or begins with a word."""
    plain = _WRAPPER.sub(r"\1", text)
    letter = _LETTER.fullmatch(plain)
    return None if letter is None or _SEVERAL.fullmatch(plain) else letter[1]
