"""ARC-AGI and its one-dimensional form: the output grid that follows from examples."""

from dataclasses import dataclass

from ring_ray.rewards.games.game import SOLVED, Finding, Game, unsolved
from ring_ray.rewards.games.grid import Grid, read_grid


@dataclass(frozen=True, slots=True)
class Arc:
    output: Grid


def judge(arc: Arc, text: str) -> Finding:
    answer = read_grid(text, len(arc.output), len(arc.output[0]))
    pairs = [
        (given, expected)
        for given_row, expected_row in zip(answer, arc.output, strict=True)
        for given, expected in zip(given_row, expected_row, strict=True)
    ]
    right = sum(given == expected for given, expected in pairs)
    return SOLVED if right == len(pairs) else unsolved(f"{right} of {len(pairs)} cells are right", right / len(pairs))


INSTRUCTION = "Write only the output grid: a row a line, numbers apart by spaces."

ARC_AGI = Game(
    dataset="arc_agi",
    # Its difficulty is the task's: training tasks as they are, then in other colours and orientations, then those of
    # the public evaluation set.
    levels={
        "easy": {"use_eval": False, "rotations": [], "mirrors": [], "use_color_permutation": False},
        "medium": {"use_eval": False},
        "hard": {"use_train": False},
    },
    instruction=INSTRUCTION,
    record=Arc,
    read=lambda entry: Arc([list(map(int, row)) for row in entry["metadata"]["output"]]),
    judge=judge,
    partial=True,
)

ARC_1D = Game(
    dataset="arc_1d",
    levels={
        "easy": {"min_size": 8, "max_size": 12},
        "medium": {"min_size": 13, "max_size": 20},
        "hard": {"min_size": 21, "max_size": 30},
    },
    instruction=INSTRUCTION,
    record=Arc,
    read=lambda entry: Arc([list(map(int, entry["metadata"]["test_example"]["output"]))]),
    judge=judge,
    partial=True,
)
