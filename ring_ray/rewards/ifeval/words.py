"""Instructions on words, letters and commas. Each takes the response and the instruction's own arguments."""

import re

import regex

from ring_ray.rewards.ifeval.counts import compare

_WORD = regex.compile(r"\w+")  # as nltk's tokenizer: with re, the vowel signs of Hindi or Thai would part words


def existence(response: str, *, keywords: list[str]) -> bool:
    """Every keyword is in the response, in upper or lower case, inside words as well."""
    return all(_occurrences(keyword, response) for keyword in keywords)


def frequency(response: str, *, keyword: str, frequency: float, relation: str) -> bool:
    return compare(_occurrences(keyword, response), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: list[str]) -> bool:
    """None of them is in the response as a whole word."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_frequency: float, let_relation: str) -> bool:
    return compare(response.lower().count(letter.lower()), let_relation, let_frequency)


def number_words(response: str, *, num_words: float, relation: str) -> bool:
    return compare(len(_WORD.findall(response)), relation, num_words)


def no_comma(response: str) -> bool:
    return "," not in response


def _occurrences(keyword: str, response: str) -> int:
    return len(re.findall(re.escape(keyword), response, re.IGNORECASE))
