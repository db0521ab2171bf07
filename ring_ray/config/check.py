"""How a value is refused, or a name that does not exist."""

import math
from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A value that the run can't work with. The message names the key, the value and what would be right."""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: {expected}")


def require_one_of(choices: tuple[str, ...], key: str, value: str) -> None:
    require(value in choices, key, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")


def require_storable(key: str, value: object) -> None:
    """Refuse what JSON, and with it a checkpoint, can't give back: such a run could never be gone on with."""
    match value:
        case list():
            for item in value:
                require(isinstance(item, str), key, value, "must be a list of text")
                require_storable(key, item)
        case str():
            unstorable = any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value)
            require(not unstorable, key, value, "must not have NUL characters or lone surrogates")
        case float():
            require(math.isfinite(value), key, value, "must be finite; where there is to be no limit, 1e9 is none")
        case int():
            require(-(2**63) <= value < 2**63, key, value, "must fit into 64 bits")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that refuses ``name``: the names most like it, or nothing where none is."""
    near = get_close_matches(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""
