"""Instructions on paragraphs, sections and marks. Each takes the response and the instruction's own arguments.

Their patterns look at each character a bounded number of times: responses may be long, and made to be slow.
"""

import json
import re

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_STARRED = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE)
_DASHED = re.compile(r"^[^\S\n]*-.*$", re.MULTILINE)
_FENCES = ("```json", "```Json", "```JSON", "```")
_FIRST_WORD = re.compile(r"'*\"*([^.,?!'\"\s]*)")


def number_paragraphs(response: str, *, num_paragraphs: float) -> bool:
    """Paragraphs are what stands between ``***``; only the first and the last may be empty, and don't count then."""
    return len(_parts(re.split(r"\s?\*\*\*\s?", response))) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
    """Paragraphs are what stands between two line breaks; empty ones don't count, but have a place of their own."""
    paragraphs = response.split("\n\n")
    number, place = sum(bool(paragraph.strip()) for paragraph in paragraphs), int(nth_paragraph)
    if not 1 <= place <= number or not paragraphs[place - 1].strip():
        return False
    word = _FIRST_WORD.match(paragraphs[place - 1].strip())
    return number == num_paragraphs and word is not None and word[1].lower() == first_word.lower()


def number_placeholders(response: str, *, num_placeholders: float) -> bool:
    lines = (line[: line.rfind("]") + 1] for line in response.split("\n"))  # else each "[" looks for a "]" in vain
    return sum(len(re.findall(r"\[.*?\]", line)) for line in lines) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(marker, re.escape(marker.lower())), response.lower()))


def number_bullet_lists(response: str, *, num_bullets: float) -> bool:
    return len(_STARRED.findall(response)) + len(_DASHED.findall(response)) == num_bullets


def constrained_response(response: str) -> bool:
    return any(answer in response for answer in _ANSWERS)


def number_highlighted_sections(response: str, *, num_highlights: float) -> bool:
    """``*one*`` and ``**two**`` stars; empty ones don't count."""
    single, double = re.findall(r"\*[^\n*]*\*", response), re.findall(r"\*\*[^\n*]*\*\*", response)
    return sum(bool(section.strip("*").strip()) for section in (*single, *double)) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: float) -> bool:
    """Each section begins with its name and a number, such as "Section 1"."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    """All of the response is JSON, with a fence around it or without."""
    text = response.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A line has a title in double angular brackets."""
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(response: str) -> bool:
    """Two different ones with ``******`` between them."""
    parts = _parts(response.split("******"))
    return len(parts) == 2 and parts[0].strip() != parts[1].strip()


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def _parts(parts: list[str]) -> list[str]:
    """Without the first and the last, where they are empty; none at all where another one is."""
    kept = [part for place, part in enumerate(parts) if part.strip() or 0 < place < len(parts) - 1]
    return kept if all(part.strip() for part in kept) else []
