"""The tower of Hanoi with three pegs or more."""

import re
from dataclasses import dataclass

from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, UnparsableError, unsolved

_MOVE = re.compile(r"move disk ([0-9]{1,3}) from peg ([0-9]{1,3}) to peg ([0-9]{1,3})\.?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hanoi:
    disks: int
    pegs: int  # numbered from 1
    start: int
    target: int


def judge(hanoi: Hanoi, text: str) -> Finding:
    """Any moves by the rules that end with all disks on the target; they need not be the fewest."""
    moves: list[tuple[int, int, int]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        move = _MOVE.fullmatch(line)
        if move is None:
            raise UnparsableError(f"{shorten(line)} is not 'Move disk X from Peg Y to Peg Z'")
        moves.append((int(move[1]), int(move[2]), int(move[3])))
    pegs: dict[int, list[int]] = {peg: [] for peg in range(1, hanoi.pegs + 1)}
    pegs[hanoi.start] = list(range(hanoi.disks, 0, -1))
    for number, (disk, source, target) in enumerate(moves, start=1):
        if source not in pegs or target not in pegs:
            return unsolved(f"move {number} names a peg that does not exist")
        if pegs[source][-1:] != [disk]:
            return unsolved(f"move {number}: disk {disk} is not on top of peg {source}")
        pegs[source].pop()
        if pegs[target] and pegs[target][-1] < disk:
            return unsolved(f"move {number} puts disk {disk} on a smaller one")
        pegs[target].append(disk)
    return SOLVED if len(pegs[hanoi.target]) == hanoi.disks else unsolved("not all disks are on the target peg")


def _read(entry: Entry) -> Hanoi:
    puzzle = entry["metadata"]
    return Hanoi(puzzle["num_disks"], puzzle["num_pegs"], puzzle["start_peg"], puzzle["target_peg"])


TOWER_OF_HANOI = Game(
    dataset="tower_of_hanoi",
    levels={
        "easy": {"min_disks": 2, "max_disks": 3, "max_pegs": 3},
        "medium": {"min_disks": 4, "max_disks": 5},
        "hard": {"min_disks": 6, "max_disks": 7},
    },
    instruction="Write only the moves, one a line.",
    record=Hanoi,
    read=_read,
    judge=judge,
)
