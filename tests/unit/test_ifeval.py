"""Every instruction of IFEval by example, and by counts on text that is made to have them."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import Response
from ring_ray.rewards.ifeval import language
from ring_ray.rewards.ifeval.instructions import INSTRUCTIONS
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Prompt, Reward, Verdict

VERIFIERS = Verifiers(RewardConfig())


def judge(response: str, *instructions: tuple[str, dict[str, Any]], verifier: str = "ifeval") -> Reward:
    names, arguments = zip(*instructions, strict=True)
    answer = json.dumps({"instruction_id_list": names, "kwargs": arguments})
    return judge_answer(response, answer, verifier)


def judge_answer(response: str, answer: str, verifier: str = "ifeval") -> Reward:
    ids = np.zeros(1, np.int32)
    prompt = Prompt(index=0, id="d:7", domain="ifeval", text="?", token_ids=ids, verifier=verifier, answer=answer)
    return VERIFIERS.judge(prompt, [Response(response, tokens=0)])[0]


PARAGRAPHS = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"}
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["cat", "c++"]},
        ["A Cat and C++", "concat c++"],
        ["cat and dog", "c++", "catt c+"],
    ),
    (
        "keywords:frequency",
        {"keyword": "is", "frequency": 2, "relation": "at least"},
        ["This is", "IS is"],
        ["is", "no"],
    ),
    ("keywords:frequency", {"keyword": "is", "frequency": 2, "relation": "less than"}, ["is", "no"], ["This is"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["concat", "dog"], ["a Cat.", "cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, ["C", "xC++"], ["I love C++ and more"]),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 3, "let_relation": "at least"}, ["aAa"], ["aa"]),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, ["!"], ["!!"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["one two-three"], ["one two"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one, two"], ["a b c"]),
    ("length_constraints:number_words", {"num_words": 2, "relation": "less than"}, ["हिन्दी", "½ a"], ["a b"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb"],
        ["a", "a***\n***b", "a*** ***b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        PARAGRAPHS,
        ["x\n\nhello, you", "x\n\n'Hello' you"],
        ["hello", "x\n\nyou hello", "x\n\nhello\n\nz", "x\n\nhello-you"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] and [b c]", "[a][b][c]"],
        ["[a]", "[a\nb] [c]", "[[[["],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. y"], ["x", "P.P.S"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S y", "p. p. s"], ["P.S. y"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b", "* a\n- b\nc"],
        ["* a", "* a\n* b\n* c", "**a**\n* b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "So: My answer is maybe."],
        ["my answer is yes.", "yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "a", "** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1 a\nSection 2 b"],
        ["Section 1", "Section A Section B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", "```\n{}\n```"],
        ["a", "{'a': 1}", "Here: {}", "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<a>>\nb", "x\n<<a b>> y"], ["<a>", "<< >>", "<<a\nb>>", "<<>>"]),
    ("combination:two_responses", {}, ["a******b", "a\n******\nb"], ["a", "a******a", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, ["what is it? A cat."], ["A cat. What is it?"]),
    ("startend:end_checker", {"end_phrase": "The end."}, ["x the END.", 'x "The end."'], ["The end. x"]),
    ("startend:quotation", {}, ['"a"', ' "a b" '], ["a", '"', '"a', "'a'"]),
    ("punctuation:no_comma", {}, ["a b"], ["a, b"]),
]
NEED_RESOURCES = {
    "change_case:capital_word_frequency": {"capital_frequency": 1, "capital_relation": "at least"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "language:response_language": {"language": "de"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "at least"},
}


def test_there_are_25_and_each_has_a_case() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {name for name, *_ in CASES} | set(NEED_RESOURCES) == set(INSTRUCTIONS)


@pytest.mark.parametrize(("name", "arguments", "follow", "do_not"), CASES)
def test_instructions(name: str, arguments: dict[str, Any], follow: list[str], do_not: list[str]) -> None:
    for responses, verdict in ((follow, Verdict.CORRECT), (do_not, Verdict.WRONG)):
        for response in responses:
            reward = judge(response, (name, arguments))
            assert (reward.verdict, reward.score) == (verdict, float(verdict is Verdict.CORRECT)), (response, reward)


WORDS = st.lists(st.sampled_from(["cat", "Dog", "bird"]), min_size=1, max_size=12)


@given(words=WORDS, bound=st.integers(0, 14), relation=st.sampled_from(["at least", "less than"]))
def test_counts_of_made_text(words: list[str], bound: int, relation: str) -> None:
    def right(count: int) -> float:
        return float(count >= bound if relation == "at least" else count < bound)

    text = " ".join(words)
    of_words = ("length_constraints:number_words", {"num_words": bound, "relation": relation})
    assert judge(text, of_words).score == right(len(words))
    of_cats = ("keywords:frequency", {"keyword": "cat", "frequency": bound, "relation": relation})
    assert judge(text, of_cats).score == right(words.count("cat"))
    of_letters = ("keywords:letter_frequency", {"letter": "d", "let_frequency": bound, "let_relation": relation})
    assert judge(text, of_letters).score == right(words.count("Dog") + words.count("bird"))
    bullets = "\n".join(f"* {word}" for word in words)
    of_bullets = ("detectable_format:number_bullet_lists", {"num_bullets": bound})
    assert judge(bullets, of_bullets).score == float(len(words) == bound)
    of_paragraphs = ("length_constraints:number_paragraphs", {"num_paragraphs": bound})
    assert judge("\n***\n".join(words), of_paragraphs).score == float(len(words) == bound)
    of_placeholders = ("detectable_content:number_placeholders", {"num_placeholders": bound})
    assert judge("".join(f"[{word}]" for word in words), of_placeholders).score == float(len(words) >= bound)


def test_all_instructions_must_be_followed() -> None:
    both = (("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert judge('"a b"', *both).score == 1.0
    assert judge('"a, b"', *both).score == 0.0
    assert "punctuation:no_comma" in judge('"a, b"', *both).reason
    assert judge(" \n", ("punctuation:no_comma", {})).score == 0.0


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ('"a"', 1.0, 1.0),
        ('Sure, here it is:\n"a"', 0.0, 1.0),
        ('"a"\nIs that what you want?', 0.0, 1.0),
        ('Sure:\n"a"\nWell?', 0.0, 1.0),
        ('**"a"**', 0.0, 1.0),
        ('Sure:\nreally:\n"a"', 0.0, 0.0),
    ],
)
def test_loose_forgives_introductions_and_marks(response: str, strict: float, loose: float) -> None:
    quotation = ("startend:quotation", {})
    assert judge(response, quotation).score == strict
    assert judge(response, quotation, verifier="ifeval_loose").score == loose


def test_arguments_that_are_null_are_left_out() -> None:
    arguments = {"num_words": 1, "relation": "at least", "keywords": None, "letter": None}
    assert judge("a", ("length_constraints:number_words", arguments)).score == 1.0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("x", "can't be read"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "1 instructions with 0 sets"),
        ('{"instruction_id_list": [], "kwargs": []}', "0 instructions"),
        ('{"instruction_id_list": ["no:such"], "kwargs": [{}]}', "'no:such' is not one of IFEval's 25"),
        ('{"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]}', "missing a required argument"),
        ('{"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "cat"}]}', "Expected `array`"),
        ('{"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": []}]}', "keywords is empty"),
        (
            '{"instruction_id_list": ["length_constraints:number_words"],'
            ' "kwargs": [{"num_words": 1, "relation": "?"}]}',
            "relation '?' is neither 'at least' nor 'less than'",
        ),
    ],
)
def test_broken_records_have_failed(answer: str, message: str) -> None:
    reward = judge_answer("a", answer)
    assert reward.verdict is Verdict.FAILED
    assert "d:7" in reward.reason
    assert message in reward.reason


@pytest.mark.parametrize(("name", "arguments"), NEED_RESOURCES.items())
def test_what_needs_a_package_is_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, Any]
) -> None:
    def missing(package: str) -> None:
        raise ImportError(package)

    monkeypatch.setattr(language, "importlib", SimpleNamespace(import_module=missing))
    response = "CATS ARE NICE" if name != "change_case:english_lowercase" else "cats are nice"
    reward = judge(response, (name, arguments))
    assert (reward.score, reward.verdict) == (0.0, Verdict.FAILED)
    assert "which is not installed" in reward.reason


def test_what_needs_punkt_is_refused_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(text: str, language: str) -> list[str]:
        raise LookupError("punkt_tab")

    nltk = SimpleNamespace(sent_tokenize=no_data, word_tokenize=no_data)
    monkeypatch.setattr(language, "importlib", SimpleNamespace(import_module=lambda name: nltk))
    for name in ("change_case:capital_word_frequency", "length_constraints:number_sentences"):
        reward = judge("A. B.", (name, NEED_RESOURCES[name]))
        assert reward.verdict is Verdict.FAILED
        assert "NLTK_DATA" in reward.reason


SLOW = [
    "[" * 100_000,
    "<" * 100_000,
    "*" * 100_000,
    "\n" * 100_000 + "x",
    " " * 100_000 + "x",
    "p. " * 50_000,
    "-\n" * 50_000,
]


@pytest.mark.parametrize("response", SLOW, ids=lambda response: repr(response[:3]))
def test_long_responses_are_judged_at_once(response: str) -> None:
    """Quadratic patterns would take minutes here, and run into the test's time limit."""
    for name, arguments, *_ in CASES:
        assert judge(response, (name, arguments)).verdict.reached
