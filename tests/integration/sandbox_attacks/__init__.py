"""Programs that attack the sandbox, and what each must come to."""

from tests.integration.sandbox_attacks import exhaustion, forgery, kernel, neighbours, secrets
from tests.integration.sandbox_attacks.attack import Attack

ATTACKS: list[Attack] = [
    *exhaustion.ATTACKS,
    *forgery.ATTACKS,
    *kernel.ATTACKS,
    *neighbours.ATTACKS,
    *secrets.ATTACKS,
]
