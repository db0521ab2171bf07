"""Instructions that need a language model's knowledge of words: a package, or data beside a package.

Where it is missing they refuse: a simpler rule would grade differently, and nobody would see it.
"""

import importlib
from types import ModuleType
from typing import Any

from ring_ray.rewards.ifeval.counts import compare


class MissingResourceError(RuntimeError):
    """A package, or its data, that an instruction can't be judged without."""


def response_language(response: str, *, language: str) -> bool:
    return _detect(response) in (language, None)


def english_capital(response: str) -> bool:
    return response.isupper() and _detect(response) in ("en", None)


def english_lowercase(response: str) -> bool:
    return response.islower() and _detect(response) in ("en", None)


def number_sentences(response: str, *, num_sentences: float, relation: str) -> bool:
    return compare(len(_tokens("sent_tokenize", response)), relation, num_sentences)


def capital_word_frequency(response: str, *, capital_frequency: float, capital_relation: str) -> bool:
    words = _tokens("word_tokenize", response)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _detect(text: str) -> str | None:
    """The text's language in ISO 639-1; None where it has none, such as a text of digits: IFEval lets that pass."""
    detector = _package("langdetect")
    detector.DetectorFactory.seed = 0  # else the same text may be judged differently the next time
    try:
        return str(detector.detect(text))
    except detector.LangDetectException:
        return None


def _tokens(tokenize: str, text: str) -> list[Any]:
    """By nltk's Punkt for English."""
    tokenizer = getattr(_package("nltk"), tokenize)
    try:
        return list(tokenizer(text, language="english"))
    except LookupError as error:
        raise MissingResourceError(
            "needs nltk's data punkt_tab in a directory that NLTK_DATA names: nltk_data/tokenizers/punkt_tab/english"
        ) from error


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingResourceError(f"needs the package {name}, which is not installed: ring_ray[ifeval]") from error
