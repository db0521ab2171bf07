"""Problems for every verifier that judges by a rule; programs and open-ended responses have tests of their own."""

from functools import partial

from ring_ray.rewards.games import GAMES
from ring_ray.rewards.registry import FACTORIES
from tests.verifiers import answers, games
from tests.verifiers.cases import Maker
from tests.verifiers.instructions import instructions

PARTIAL = "_partial"  # ends the name of a verifier that scores what is right of a puzzle that is not solved
MAKERS: dict[str, Maker] = {
    "choice": answers.choices,
    "ifeval": partial(instructions, "ifeval"),
    "ifeval_loose": partial(instructions, "ifeval_loose"),
    "integer": answers.integers,
    "math": answers.mathematics,
    "science": answers.science,
    **{name: partial(games.problems, name) for name in FACTORIES if name.removesuffix(PARTIAL) in GAMES},
}
assert MAKERS.keys() == FACTORIES.keys() - {"code", "judge", "reward_model"}, "every rule has problems"
