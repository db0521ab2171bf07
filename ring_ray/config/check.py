"""How a value is refused."""


class ConfigError(ValueError):
    """A value that the run can't work with. The message names the key, the value and what would be right."""


def require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: {expected}")


def require_one_of(choices: tuple[str, ...], key: str, value: str) -> None:
    require(value in choices, key, value, f"must be {', '.join(choices[:-1])} or {choices[-1]}")
