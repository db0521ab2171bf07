"""Instructions of IFEval that plain counting can check. The others are compared with lm-eval: see lm_eval.py."""

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.verifiers.cases import Problem

WORDS = [*("cat", "Dog", "bird", "THE END.", "stone,", "[x]", "*bold*", '"', "<<Title>>", "\n", "\n* item\n", "{}")]

Check = Callable[[str], bool]
Kind = tuple[str, dict[str, Any], str, Check]  # IFEval's name, arguments, a response that follows, and the check


def _words(text: str) -> list[str]:
    return re.sub(r"\W", " ", text.lower()).split()


def _is_json(text: str) -> bool:
    try:
        json.loads(text.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (ValueError, RecursionError):
        return False
    return True


def _has_placeholder(text: str) -> bool:
    return any("]" in line.partition("[")[2] for line in text.split("\n"))


def _has_title(text: str) -> bool:
    return any(re.search(r"<<[^\n]*[^<>\s][^\n]*>>", line) for line in text.split("\n"))


def _is_quoted(text: str) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


def _ends(text: str) -> bool:
    return text.strip().strip('"').lower()[-8:] == "the end."


AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
CATS = {"keyword": "cat", "frequency": 2}
LETTERS = {"letter": "d", "let_frequency": 2, "let_relation": "at least"}
KINDS: list[Kind] = [
    (
        "keywords:existence",
        {"keywords": ["cat", "dog"]},
        "a cat, a DOG",
        lambda t: "cat" in t.lower() and "dog" in t.lower(),
    ),
    ("keywords:frequency", CATS | AT_LEAST, "cat Cat", lambda t: t.lower().count("cat") >= 2),
    ("keywords:frequency", CATS | LESS, "a cat", lambda t: t.lower().count("cat") < 2),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concat", lambda t: "cat" not in _words(t)),
    ("keywords:letter_frequency", LETTERS, "Dad", lambda t: sum(letter in "dD" for letter in t) >= 2),
    ("length_constraints:number_words", {"num_words": 4} | LESS, "one two-three", lambda t: len(_words(t)) < 4),
    ("length_constraints:number_words", {"num_words": 2} | AT_LEAST, "one two", lambda t: len(_words(t)) >= 2),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "an [x]", _has_placeholder),
    ("detectable_format:json_format", {}, '{"cat": 1}', _is_json),
    ("detectable_format:title", {}, "<<cat>>", _has_title),
    ("startend:end_checker", {"end_phrase": "The end."}, "cat. THE END.", _ends),
    ("startend:quotation", {}, '"cat"', _is_quoted),
    ("punctuation:no_comma", {}, "cat", lambda t: t.count(",") == 0),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "A cat?"},
        "a cat? Yes.",
        lambda t: t.strip().lower()[:6] == "a cat?",
    ),
]


def instructions(verifier: str, generator: random.Random) -> Iterator[Problem]:
    """Two at a time; with ``ifeval_loose`` a part of the response may count for the whole."""
    while True:
        kinds = generator.sample(KINDS, generator.randint(1, 2))
        names, arguments, responses, _ = zip(*kinds, strict=True)
        if len(kinds) == 2 and not all(check(responses[0]) for *_, check in kinds):
            continue
        yield Problem(
            verifier=verifier,
            answer=json.dumps({"instruction_id_list": names, "kwargs": arguments}),
            response=responses[0],
            right=partial(_follows, kinds, verifier == "ifeval_loose"),
            changed=lambda other: " ".join(other.choices(WORDS, k=other.randint(1, 8))),
        )


def _follows(kinds: list[Kind], loose: bool, response: str) -> bool:
    lines = response.split("\n")
    texts = [response]
    if loose:
        cuts = ("\n".join(lines[first:last]).strip() for first in (0, 1) for last in (len(lines), len(lines) - 1))
        texts += [shown for text in cuts for shown in (text, text.replace("*", ""))] + [response.replace("*", "")]
    return all(any(text.strip() and check(text) for text in texts) for *_, check in kinds)
