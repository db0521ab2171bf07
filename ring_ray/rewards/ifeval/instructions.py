"""Every instruction by IFEval's name for it."""

import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from ring_ray.rewards.ifeval import language, layout, words

INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": language.capital_word_frequency,
    "change_case:english_capital": language.english_capital,
    "change_case:english_lowercase": language.english_lowercase,
    "combination:repeat_prompt": layout.repeat_prompt,
    "combination:two_responses": layout.two_responses,
    "detectable_content:number_placeholders": layout.number_placeholders,
    "detectable_content:postscript": layout.postscript,
    "detectable_format:constrained_response": layout.constrained_response,
    "detectable_format:json_format": layout.json_format,
    "detectable_format:multiple_sections": layout.multiple_sections,
    "detectable_format:number_bullet_lists": layout.number_bullet_lists,
    "detectable_format:number_highlighted_sections": layout.number_highlighted_sections,
    "detectable_format:title": layout.title,
    "keywords:existence": words.existence,
    "keywords:forbidden_words": words.forbidden_words,
    "keywords:frequency": words.frequency,
    "keywords:letter_frequency": words.letter_frequency,
    "language:response_language": language.response_language,
    "length_constraints:nth_paragraph_first_word": layout.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": layout.number_paragraphs,
    "length_constraints:number_sentences": language.number_sentences,
    "length_constraints:number_words": words.number_words,
    "punctuation:no_comma": words.no_comma,
    "startend:end_checker": layout.end_checker,
    "startend:quotation": layout.quotation,
}


def bind(name: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    """The check of a response; raises ValueError for an unknown instruction, or arguments that it can't take.

    IFEval's data names every argument of every instruction: those that are null are left out.
    """
    if name not in INSTRUCTIONS:
        raise ValueError(f"instruction {name!r} is not one of IFEval's 25")
    given = {key: value for key, value in arguments.items() if value is not None}
    instruction = INSTRUCTIONS[name]
    signature = inspect.signature(instruction)
    try:
        signature.bind("", **given)
        for key, value in given.items():
            msgspec.convert(value, signature.parameters[key].annotation)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"instruction {name!r}: {error}") from error
    if empty := [key for key, value in given.items() if value in ("", [])]:
        raise ValueError(f"instruction {name!r}: {empty[0]} is empty")
    return lambda response: instruction(response, **given)
