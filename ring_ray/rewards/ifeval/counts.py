"""How a count is compared with what was asked for."""

import operator

_RELATIONS = {"at least": operator.ge, "less than": operator.lt}


def compare(count: int, relation: str, bound: float) -> bool:
    """Raises ValueError for a relation that IFEval does not have."""
    if relation not in _RELATIONS:
        raise ValueError(f"relation {relation!r} is neither {' nor '.join(map(repr, _RELATIONS))}")
    return bool(_RELATIONS[relation](count, bound))
