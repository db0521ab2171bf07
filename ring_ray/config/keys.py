"""What a key of the schema is: a default and a description, which `--help` and docs/config.md are made of."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import getdoc
from typing import Any, TypeVar

T = TypeVar("T")


def key(default: T, description: str) -> T:
    """A field of a schema dataclass. ``description`` is whole sentences that name the choices and the unit."""
    return field(default_factory=lambda: deepcopy(default), metadata={"description": description})


@dataclass(frozen=True, slots=True)
class Key:
    name: str  # as the command line has it: "algo.token_budget"
    type: str  # "int", "str or null"
    value: Any
    description: str


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one dataclass, without those of the dataclasses in it."""

    name: str  # "algo", "cluster.policy"; "" for the keys of the run itself
    description: str
    keys: tuple[Key, ...]


def sections(config: Any, name: str = "", description: str = "") -> Iterator[Section]:
    """A schema dataclass and, depth first, the dataclasses in it; ``description`` is the class's own by default."""
    prefix = f"{name}." if name else ""
    members = [(member, getattr(config, member.name)) for member in fields(config)]
    keys = tuple(
        Key(prefix + member.name, _type_name(member.type), value, member.metadata.get("description", ""))
        for member, value in members
        if not is_dataclass(value)
    )
    yield Section(name, description or getdoc(config) or "", keys)
    for member, value in members:
        if is_dataclass(value):
            yield from sections(value, prefix + member.name, member.metadata.get("description", ""))


def names(config: Any) -> list[str]:
    """Of every section and every key, as the command line has them."""
    found = [(section.name, *(key.name for key in section.keys)) for section in sections(config)]
    return [name for names in found for name in names if name]


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return name.replace(" | None", " or null")


def flatten(value: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted key, such as ("algo.token_budget", 6144)."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flatten(part, f"{key}.{name}" if key else name)
    else:
        yield key, value
