"""Problems for every verifier but those that ask a model, which no second judge can check."""

from functools import partial

from ring_ray.rewards.games import GAMES
from ring_ray.rewards.registry import FACTORIES
from tests.verifiers import answers, games, programs
from tests.verifiers.cases import Maker
from tests.verifiers.instructions import instructions

PARTIAL = "_partial"  # ends the name of a verifier that scores what is right of a puzzle that is not solved
MAKERS: dict[str, Maker] = {
    "choice": answers.choices,
    "code": programs.programs,
    "ifeval": partial(instructions, "ifeval"),
    "ifeval_loose": partial(instructions, "ifeval_loose"),
    "integer": answers.integers,
    "math": answers.mathematics,
    "science": answers.science,
    **{name: partial(games.problems, name) for name in FACTORIES if name.removesuffix(PARTIAL) in GAMES},
}
assert MAKERS.keys() == FACTORIES.keys() - {"judge", "reward_model"}, "every other verifier has problems"
