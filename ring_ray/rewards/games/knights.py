"""Knights and knaves: who always tells the truth, and who always lies."""

import re
from dataclasses import dataclass

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, UnparsableError, unsolved


@dataclass(frozen=True, slots=True)
class Knights:
    truthful: dict[str, bool]  # by name; the puzzle has one solution
    terms: tuple[str, str]  # what the puzzle calls those who tell the truth, and those who lie


def judge(knights: Knights, text: str) -> Finding:
    names, terms = ("|".join(map(re.escape, words)) for words in (knights.truthful, knights.terms))
    said: dict[str, set[str]] = {name.casefold(): set() for name in knights.truthful}
    for name, term in re.findall(rf"\b({names}) is (?:an? )?({terms})\b", " ".join(text.split()), re.IGNORECASE):
        if name.casefold() in said:  # where case is ignored a dotless i is found for an i, and names nobody
            said[name.casefold()].add(term.casefold())
    for name, truthful in knights.truthful.items():
        said_of_name = said[name.casefold()]
        if len(said_of_name) != 1:
            raise UnparsableError(f"the answer does not say what {name} is, or says both")
        if said_of_name != {knights.terms[0 if truthful else 1].casefold()}:
            return unsolved(f"{name} is no {said_of_name.pop()}")
    return SOLVED


def _read(entry: Entry) -> Knights:
    puzzle = entry["metadata"]
    truthful = dict(zip(map(str, puzzle["names"]), map(bool, puzzle["solution"]), strict=True))
    terms = puzzle["knight_knave_terms"]  # NumPy's strings
    return Knights(truthful, (str(terms["knight"]), str(terms["knave"])))


KNIGHTS_KNAVES = Game(
    dataset="knights_knaves",
    levels={"easy": {"n_people": 2}, "medium": {"n_people": 3}, "hard": {"n_people": 5, "depth_constraint": 3}},
    instruction="Write only what each one is, as the format above shows.",
    record=Knights,
    read=_read,
    judge=judge,
)
