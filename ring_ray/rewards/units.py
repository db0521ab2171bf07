r"""Physical units in plain text or LaTeX: ``m/s^2``, ``\text{ km}``, ``\mathrm{kg\,m^{-3}}``, ``hours``."""

import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache


@dataclass(frozen=True, slots=True)
class Unit:
    text: str = field(compare=False)
    scale: Fraction  # of one, in SI base units
    dimensions: frozenset[tuple[str, int]]  # base units and their powers


_BASE = ("m", "kg", "s", "A", "K", "mol", "cd", "°", "°C")  # degrees are converted into nothing else
_DERIVED = {
    "g": ("1/1000", "kg"),
    "t": ("1000", "kg"),
    "lb": ("0.45359237", "kg"),
    "in": ("0.0254", "m"),
    "ft": ("0.3048", "m"),
    "yd": ("0.9144", "m"),
    "mi": ("1609.344", "m"),
    "wk": ("604800", "s"),
    "min": ("60", "s"),
    "h": ("3600", "s"),
    "d": ("86400", "s"),
    "mph": ("0.44704", "m s^-1"),
    "L": ("1/1000", "m^3"),
    "l": ("1/1000", "m^3"),
    "angstrom": ("1/10000000000", "m"),
    "ha": ("10000", "m^2"),
    "rad": ("1", ""),
    "Hz": ("1", "s^-1"),
    "Bq": ("1", "s^-1"),
    "N": ("1", "kg m s^-2"),
    "Pa": ("1", "N m^-2"),
    "bar": ("100000", "Pa"),
    "atm": ("101325", "Pa"),
    "mmHg": ("133.322387415", "Pa"),
    "Torr": ("101325/760", "Pa"),
    "J": ("1", "N m"),
    "cal": ("4.184", "J"),
    "eV": ("1.602176634e-19", "J"),
    "Wh": ("3600", "J"),
    "W": ("1", "J s^-1"),
    "C": ("1", "A s"),
    "V": ("1", "J C^-1"),
    "ohm": ("1", "V A^-1"),
    "S": ("1", "ohm^-1"),
    "F": ("1", "C V^-1"),
    "Wb": ("1", "V s"),
    "T": ("1", "Wb m^-2"),
    "H": ("1", "Wb A^-1"),
    "M": ("1000", "mol m^-3"),
}
_NAMES = {
    "meter": "m",
    "metre": "m",
    "gram": "g",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "hr": "h",
    "day": "d",
    "week": "wk",
    "inche": "in",  # the plural without its s
    "inch": "in",
    "foot": "ft",
    "feet": "ft",
    "yard": "yd",
    "mile": "mi",
    "pound": "lb",
    "liter": "L",
    "litre": "L",
    "newton": "N",
    "joule": "J",
    "watt": "W",
    "volt": "V",
    "ampere": "A",
    "amp": "A",
    "kelvin": "K",
    "pascal": "Pa",
    "hertz": "Hz",
    "coulomb": "C",
    "tesla": "T",
    "mole": "mol",
    "radian": "rad",
    "degree": "°",
}
_PREFIXES = {"": 0, "p": -12, "n": -9, "u": -6, "m": -3, "c": -2, "d": -1, "h": 2, "k": 3, "M": 6, "G": 9, "T": 12}
_LONG_PREFIXES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}
_PREFIXED = {
    *("m", "g", "s", "A", "K", "mol", "L", "l", "M"),
    *("Hz", "Bq", "N", "Pa", "bar", "J", "cal", "eV", "W", "Wh", "C", "V", "ohm", "S", "F", "Wb", "T", "H"),
}

_REWRITES = (
    (r"\^\{?\\circ\}?|\\degrees?\b", "°"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\(?:text|textrm|mathrm|mbox|rm|operatorname)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/(\2)"),
    (r"(?:\\mu\b|[µμ])\s*", "u"),
    (r"\\Omega\b|[ΩΩ]|\bohms\b", "ohm"),
    (r"\\cdot\b|\\times\b|\\[,;:! ]|[·⋅*~{}]", " "),
    (r"\bper\b", "/"),
    (r"\bsquare\s+([A-Za-z]+)", r"\1^2"),
    (r"\bcubic\s+([A-Za-z]+)", r"\1^3"),
    (r"°\s*C(?:elsius)?\b|\b[Dd]egrees?\s+[Cc]elsius\b", "°C"),
    (r"Å|\\AA\b", "angstrom"),
)
_SUPERSCRIPTS = {ord(sign): f"{digit}" for sign, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True)}
_FACTOR = re.compile(r"(°C|°|[A-Za-z]+)(?:(?:\s*\^\s*)?([+-]?[0-9]{1,2}))?")  # a number after a space is no power
_WRAPPER = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname)\s*\{")
_BARE = re.compile(
    r"(\s*[+-]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:\s*(?:e|E|(?:\\times|\\cdot|×|\*)\s*10\s*\^)\s*\{?\s*[+-]?[0-9]{1,3}\s*\}?)?)(.+)",
    re.DOTALL,
)
_LIMIT = 120  # characters of a unit, and
_TEXT_LIMIT = 1000  # of a number with one: more is no quantity


def read_unit(text: str) -> Unit | None:
    """None where ``text`` is not a product of known units. All that follows a slash is below it: J/mol K."""
    if len(text) > _LIMIT:
        return None
    plain = text.translate(_SUPERSCRIPTS)
    for pattern, replacement in _REWRITES:
        plain = re.sub(pattern, replacement, plain)
    scale, powers = Fraction(1), Counter[str]()
    for place, part in enumerate(plain.replace("(", " ").replace(")", " ").split("/")):
        sign = 1 if place == 0 else -1
        rest = part.strip()
        while rest:
            factor = _FACTOR.match(rest)
            unit = _symbol(factor[1]) if factor else None
            if factor is None or unit is None:
                return None
            power = sign * int(factor[2] or 1)
            scale *= unit.scale**power
            powers.update({base: exponent * power for base, exponent in unit.dimensions})
            rest = rest[factor.end() :].strip()
    if not plain.strip(" /"):
        return None
    return Unit(text.strip(), scale, frozenset((base, power) for base, power in powers.items() if power))


def separate_unit(latex: str, *, bare: bool) -> tuple[str, Unit | None]:
    r"""A number and the unit that ends the text, such as ``5\text{ cm}``; all of the text and None without one.

    Only with ``bare`` letters that follow a decimal number are a unit: ``5m`` may mean five times m.
    """
    if len(latex) > _TEXT_LIMIT:
        return latex, None
    for wrapper in _WRAPPER.finditer(latex):
        number, unit = latex[: wrapper.start()], read_unit(latex[wrapper.start() :])
        # "(" and "P(" are no numbers: what follows is a letter in parentheses.
        if unit is not None and number.strip() and number.count("(") == number.count(")"):
            return re.sub(r"(?:\\[,;:! ]|~|\s)+$", "", number), unit
    if bare and (match := _BARE.fullmatch(latex)) and (unit := read_unit(match[2])):
        return match[1], unit
    return latex, None


@cache
def _symbol(name: str) -> Unit | None:
    """A unit by its symbol or its English name, with a prefix or without."""
    if name in _BASE:
        return Unit(name, Fraction(1), frozenset({(name, 1)}))
    if name in _DERIVED:
        scale, definition = _DERIVED[name]
        unit = read_unit(definition) if definition else Unit("", Fraction(1), frozenset())
        assert unit is not None  # the table's own definitions can be read
        return Unit(name, Fraction(scale) * unit.scale, unit.dimensions)
    prefix, symbol = name[:1], name[1:]
    if symbol in _PREFIXED and prefix in _PREFIXES:
        return _scaled(name, _PREFIXES[prefix], symbol)
    word = name.lower().removesuffix("s") if len(name) > 3 else name
    if word in _NAMES:
        return _scaled(name, 0, _NAMES[word])
    for long_prefix, exponent in _LONG_PREFIXES.items():
        rest = word.removeprefix(long_prefix)
        if rest != word and _NAMES.get(rest) in _PREFIXED:
            return _scaled(name, exponent, _NAMES[rest])
    return None


def _scaled(name: str, exponent: int, symbol: str) -> Unit | None:
    unit = _symbol(symbol)
    return unit and Unit(name, Fraction(10) ** exponent * unit.scale, unit.dimensions)
