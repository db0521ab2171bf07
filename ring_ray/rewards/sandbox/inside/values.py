"""Python values as JSON that keeps tuples, sets, bytes and the types of keys apart. Reading it never runs code."""

import datetime
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Types of the standard library that are values: what each is made of, and how it is made again.
_STANDARD: dict[type, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    Counter: (dict, Counter),
    OrderedDict: (dict, OrderedDict),
    defaultdict: (dict, lambda items: defaultdict(None, items)),
    deque: (list, deque),
    Decimal: (str, Decimal),
    Fraction: (Fraction.as_integer_ratio, lambda ratio: Fraction(*ratio)),
    range: (lambda value: (value.start, value.stop, value.step), lambda parts: range(*parts)),
    slice: (lambda value: (value.start, value.stop, value.step), lambda parts: slice(*parts)),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.datetime: (datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.timedelta: (
        lambda value: (value.days, value.seconds, value.microseconds),
        lambda parts: datetime.timedelta(*parts),
    ),
}
_BY_NAME = {kind.__name__: make for kind, (_, make) in _STANDARD.items()}


class NotPlainError(ValueError):
    """A value that is not built of Python's own types, or text that `dumps` did not write."""


def dumps(value: object, remote: Callable[[object], int] | None = None) -> str:
    """Raises `NotPlainError`, unless ``remote`` gives other objects a number that stands for them."""
    try:
        return json.dumps(_encode(value, remote))
    except RecursionError as error:
        raise NotPlainError("nested too deeply, or within itself") from error
    except ValueError as error:  # an integer of more digits than Python writes
        raise NotPlainError(str(error)) from error


def loads(text: str | bytes, remote: Callable[[int], object] | None = None) -> Any:
    """Raises `NotPlainError` for anything that `dumps` can't have written."""
    try:
        return _decode(json.loads(text), remote)
    except NotPlainError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, KeyError) as error:
        raise NotPlainError(f"not a value: {error}") from error


def as_json(text: bytes) -> object:
    """What `dumps` wrote, as JSON would have it: a tuple is a list, the keys of a dict are text.

    A submission chose the values, so none of them becomes a key: integers can be chosen such that a set of them takes
    hours. Raises `NotPlainError`, for sets, bytes and complex numbers as well.
    """
    try:
        return _as_json(json.loads(text))
    except NotPlainError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise NotPlainError(f"what is no value: {error}") from error


def _as_json(value: Any) -> object:
    match value:
        case {"list": list(items)} | {"tuple": list(items)} if len(value) == 1:
            return [_as_json(item) for item in items]
        case {"Counter": dict(items)} | {"OrderedDict": dict(items)} | {"defaultdict": dict(items)} if len(value) == 1:
            return _as_json(items)
        case {"dict": list(pairs)} if len(value) == 1:
            return {key if isinstance(key, str) else json.dumps(key): _as_json(item) for key, item in pairs}
        case None | bool() | int() | float() | str():
            return value
    raise NotPlainError("what JSON has no value for")


def _encode(value: object, remote: Callable[[object], int] | None) -> object:
    kind = type(value)  # exactly: a subclass may lie about its items
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [_encode(item, remote) for item in value]}  # type: ignore[attr-defined]
    if kind is dict:
        return {"dict": [[_encode(key, remote), _encode(item, remote)] for key, item in value.items()]}  # type: ignore[attr-defined]
    if isinstance(value, bytes) and kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, complex) and kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in _STANDARD:
        return {kind.__name__: _encode(_STANDARD[kind][0](value), remote)}
    if remote is None:
        raise NotPlainError(f"a value of type {kind.__name__} can't be compared")
    return {"remote": remote(value)}


def _decode(value: Any, remote: Callable[[int], object] | None) -> object:
    if not isinstance(value, dict | list):
        return value
    if isinstance(value, list) or len(value) != 1:
        raise NotPlainError("not a value")
    ((kind, content),) = value.items()
    match kind:
        case "list":
            return [_decode(item, remote) for item in content]
        case "tuple":
            return tuple(_decode(item, remote) for item in content)
        case "set":
            return {_decode(item, remote) for item in content}
        case "frozenset":
            return frozenset(_decode(item, remote) for item in content)
        case "dict":
            return {_decode(key, remote): _decode(item, remote) for key, item in content}
        case "bytes":
            return str(content).encode("latin-1")
        case "complex":
            real, imaginary = content
            return complex(real, imaginary)
        case "remote" if remote is not None:
            return remote(int(content))
    if kind in _BY_NAME:
        return _BY_NAME[kind](_decode(content, remote))
    raise NotPlainError("not a value")
