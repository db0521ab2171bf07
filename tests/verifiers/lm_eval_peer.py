"""What `lm_eval` runs in lm-eval's environment: cases of each instruction, and both verdicts on them."""

import importlib.util
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ring_ray.config import RewardConfig
from ring_ray.rewards.ifeval.instructions import INSTRUCTIONS
from ring_ray.rewards.ifeval.verifier import InstructionVerifier
from ring_ray.types import Prompt, Verdict

WORDS = [
    "cat",
    "Dog",
    "the end.",
    "DON'T",
    "stone,",
    "no",
    "is",
    "हिन्दी",
    "x-ray",
    "Ünü",
    "½",
    "12",
    "Section 1",
    "SECTION 2",
]
MARKS = ['"', "*b*", "**c**", "[x]", "[y z]", "<<T>>", "***", "******", "* i", "- j", "{}", "[1]", "```json", "```"]
MORE_MARKS = ["p.p.s", "P.P.S b", "P.S. a", "P. S.", "My answer is yes.", "My answer is maybe.", "<<", ">>", "  ", "'"]
BREAKS = [" ", " ", " ", "\n", "\n\n", "\n***\n", "******", ""]
SENTENCES = [
    "This is a sentence about the weather, and it is not very long.",
    "Das ist ein Satz über das Wetter, und er ist nicht sehr lang.",
    "Ceci est une phrase sur le temps, et elle n'est pas très longue.",
    "12345",
]
PUNKT = ("change_case:capital_word_frequency", "length_constraints:number_sentences")
RELATIONS = ["at least", "less than"]

Draw = Callable[[random.Random], dict[str, Any]]


def _count(key: str, relation: str | None = None) -> Draw:
    def draw(generator: random.Random) -> dict[str, Any]:
        return {key: generator.randint(1, 6)} | ({relation: generator.choice(RELATIONS)} if relation else {})

    return draw


def _first_word(generator: random.Random) -> dict[str, Any]:
    number = generator.randint(1, 3)
    word = generator.choice(["cat", "dog", "don", "no"])
    return {"num_paragraphs": number, "nth_paragraph": generator.randint(1, number), "first_word": word}


ARGUMENTS: dict[str, Draw] = {
    "change_case:capital_word_frequency": _count("capital_frequency", "capital_relation"),
    "combination:repeat_prompt": lambda g: {"prompt_to_repeat": g.choice(["What is it?", "cat"])},
    "detectable_content:number_placeholders": _count("num_placeholders"),
    "detectable_content:postscript": lambda g: {"postscript_marker": g.choice(["P.S.", "P.P.S"])},
    "detectable_format:multiple_sections": lambda g: (
        _count("num_sections")(g) | {"section_spliter": g.choice(["Section", "SECTION"])}
    ),
    "detectable_format:number_bullet_lists": _count("num_bullets"),
    "detectable_format:number_highlighted_sections": _count("num_highlights"),
    "keywords:existence": lambda g: {"keywords": g.sample(["cat", "dog", "is", "12"], 2)},
    "keywords:forbidden_words": lambda g: {"forbidden_words": g.sample(["cat", "dog", "is", "12"], 2)},
    "keywords:frequency": lambda g: _count("frequency", "relation")(g) | {"keyword": g.choice(["cat", "is"])},
    "keywords:letter_frequency": lambda g: _count("let_frequency", "let_relation")(g) | {"letter": g.choice("aeis")},
    "language:response_language": lambda g: {"language": g.choice(["en", "de", "fr"])},
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _count("num_paragraphs"),
    "length_constraints:number_sentences": _count("num_sentences", "relation"),
    "length_constraints:number_words": lambda g: {"num_words": g.randint(1, 20), "relation": g.choice(RELATIONS)},
    "startend:end_checker": lambda g: {"end_phrase": g.choice(["The end.", "cat"])},
}


def response(name: str, generator: random.Random) -> str:
    """Of words and marks that instructions speak of, in places where they count and in others."""
    if name.startswith(("language:", "change_case:")):
        text = " ".join(generator.choices(SENTENCES, k=generator.randint(1, 3)))
        return generator.choice([text, text.upper(), text.lower(), ""])
    pieces = generator.choice([WORDS, MARKS, WORDS + MARKS, WORDS + MARKS + MORE_MARKS, ["* cat", "- Dog"]])
    if "nth_paragraph" in name:
        pieces = ["cat 'x", "Dog, a", '"no"', "don't", "'dog\n", ""]
    breaks = ["\n\n"] if "nth_paragraph" in name else ["\n"] if "bullet" in name else BREAKS
    text = "".join(generator.choice(pieces) + generator.choice(breaks) for _ in range(generator.choice([1, 2, 3, 12])))
    match generator.randrange(8):
        case 0:
            return f'"{text}"'
        case 1:
            return f"```json\n{json.dumps({text: text})}\n```"
        case 2:
            return f"{text}\nThe end."
        case 3:
            return f"What is it? {text}"
        case 4:
            return generator.randbytes(generator.randrange(80)).decode("latin-1")
    return text


def theirs() -> ModuleType:
    """lm-eval's verdicts, without the rest of lm-eval, which needs torch."""
    root = importlib.util.find_spec("lm_eval")
    assert root is not None
    for name, part in (("lm_eval", ""), ("lm_eval.tasks", "/tasks")):
        package = ModuleType(name)
        package.__path__ = [f"{place}{part}" for place in root.submodule_search_locations or []]
        sys.modules[name] = package
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


def main() -> None:
    logging.disable(logging.ERROR)  # of each text that has no language
    cases, seed = map(int, sys.argv[1:])
    lm_eval = theirs()
    ours = {"strict": InstructionVerifier(RewardConfig()), "loose": InstructionVerifier(RewardConfig(), loose=True)}
    judges = {"strict": lm_eval.test_instruction_following_strict, "loose": lm_eval.test_instruction_following_loose}
    differences, left_out = list[str](), list[str]()
    print(f"{'instruction':48}{'cases':>8}{'followed':>10}{'loosely':>9}{'differ':>8}")
    for name in sorted(INSTRUCTIONS):
        generator, counts = random.Random(f"{seed} {name}"), Counter[str]()
        for _ in range(cases):
            arguments = ARGUMENTS.get(name, lambda generator: {})(generator)
            text = response(name, generator)
            prompt = _prompt({"instruction_id_list": [name], "kwargs": [arguments]})
            example = lm_eval.InputExample(key=0, instruction_id_list=[name], prompt="?", kwargs=[arguments])
            try:
                expected = {way: judge(example, text).follow_all_instructions for way, judge in judges.items()}
            except LookupError:
                left_out.append(name)
                break
            for way, right in expected.items():
                reward = ours[way].verify(prompt, text)
                counts[way] += right
                if not reward.verdict.reached or (reward.verdict is Verdict.CORRECT) != right:
                    counts["differ"] += 1
                    differences.append(f"{name} {arguments}, {way}, lm-eval says {right}: {text!r}: {reward.reason}")
        else:
            print(f"{name:48}{cases:8,}{counts['strict']:10,}{counts['loose']:9,}{counts['differ']:8,}", flush=True)
    for name in left_out:
        print(f"{name:48} not run: needs nltk's data punkt_tab")
    print(
        f"{len(INSTRUCTIONS) - len(left_out)} instructions, {len(differences)} differences", *differences[:20], sep="\n"
    )
    sys.exit(bool(differences) or not {*left_out} <= {*PUNKT})


def _prompt(answer: dict[str, Any]) -> Prompt:
    ids = np.zeros(1, np.int32)
    return Prompt(index=0, id="d", domain="d", text="?", token_ids=ids, verifier="ifeval", answer=json.dumps(answer))


if __name__ == "__main__":
    main()
