"""How a value is refused, or a name that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A value that the run can't work with. The message names the key, the value and what would be right."""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: {expected}")


def require_one_of(choices: tuple[str, ...], key: str, value: str) -> None:
    require(value in choices, key, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that refuses ``name``: the names most like it, or nothing where none is."""
    near = get_close_matches(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""
