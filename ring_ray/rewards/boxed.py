"""Where an answer stands in a response: ``\\boxed{answer}`` (Ring-lite, arXiv 2506.14731, the instruction for math)."""

import re

_OPENING = r"\boxed{"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character first: \{ is text, not a brace


def last_boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds; None where there is none, or where it is never closed."""
    opening = text.rfind(_OPENING)
    if opening < 0:
        return None
    start, depth = opening + len(_OPENING), 1
    for match in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : match.start()]
    return None


def shorten(answer: str, limit: int = 60) -> str:
    """``answer`` quoted on one line of about ``limit`` characters, for a reason that people read."""
    return repr(answer if len(answer) <= limit else answer[:limit] + "…")
