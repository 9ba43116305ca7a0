"""A second reader of document lines, written from the table in docs/FORMAT.md alone. Shares nothing with the product.

JSON goes through the standard library into tagged values that keep the digits of numbers and the order of keys.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import NoReturn, TypeAlias


class ReferenceFormatError(ValueError):
    """A line that the table does not allow."""


@dataclass(frozen=True)
class Number:
    """A number as the text it was written with."""

    text: str


@dataclass(frozen=True)
class Members:
    """An object: its members in the order they stand."""

    pairs: tuple[tuple[str, Value], ...]

    def get(self, name: str) -> Value:
        """The last value under `name`, or None."""
        return dict(self.pairs).get(name)


Value: TypeAlias = "bool | str | Number | Members | list[Value] | None"

_DATETIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?"
    r"(?:(Z)|([+-])([0-9]{2}):([0-9]{2}))?)?"
)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WRAPPED_TEXT = {"uuid": "$uuid", "objectid": "$objectId", "bytes_b64": "$binary"}


def _refuse(text: str) -> NoReturn:
    raise ReferenceFormatError(f"{text} is not JSON")


def parse(text: bytes) -> Value:
    """JSON as tagged values. Raises ValueError."""
    value: Value = json.loads(
        text.decode(),
        parse_float=Number,
        parse_int=Number,
        parse_constant=_refuse,
        object_pairs_hook=lambda pairs: Members(tuple(pairs)),
    )
    return value


def same_value(one: bytes, other: bytes) -> bool:
    """Whether two JSON texts hold the same value: the same digits, the same order of keys, the same vector form."""
    return parse(one) == parse(other)


def decode_line(line: bytes) -> Value:
    """The document that a line stands for."""
    document = parse(line)
    if not isinstance(document, Members):
        raise ReferenceFormatError("not an object")
    pairs = list(document.pairs)
    is_binary = bool(pairs) and pairs[-1] == ("$backupVector", "binary")
    if is_binary:
        pairs.pop()
    return Members(
        tuple(
            (name, binary_vector(value) if is_binary and name == "$vector" else unwrap(value)) for name, value in pairs
        )
    )


def unwrap(value: Value) -> Value:
    """A value without its wrappers, at any depth."""
    if isinstance(value, list):
        return [unwrap(element) for element in value]
    if not isinstance(value, Members):
        return value
    names = [name for name, _ in value.pairs]
    if names == ["$backupType", "value"]:
        return _unwrap_one(value.pairs[0][1], value.pairs[1][1])
    if "$backupType" in names or "$backupVector" in names:
        raise ReferenceFormatError("a wrapper with other members")
    return Members(tuple((name, unwrap(member)) for name, member in value.pairs))


def _unwrap_one(kind: Value, value: Value) -> Value:
    if kind == "set" and isinstance(value, list):
        return [unwrap(element) for element in value]
    if kind == "timestamp_ms" and isinstance(value, Number):
        return Members((("$date", value),))
    if not isinstance(value, str) or not isinstance(kind, str):
        raise ReferenceFormatError("a wrapper's value has the wrong type")
    if kind in ("datetime", "date"):
        return Members((("$date", Number(str(milliseconds(value)))),))
    if kind in _WRAPPED_TEXT:
        return Members(((_WRAPPED_TEXT[kind], value),))
    if kind == "decimal" and _NUMBER.fullmatch(value):
        return Number(value)
    if kind == "wire":
        return parse(value.encode())
    raise ReferenceFormatError(f"unknown wrapper {kind}")


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar, by counting 400-year eras from a March."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


def milliseconds(text: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 date or time, in whole numbers only; naive means UTC."""
    match = _DATETIME.fullmatch(text)
    if match is None:
        raise ReferenceFormatError(f"{text!r} is no time")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    micros = int((match[7] or "0").ljust(6, "0"))
    offset = (int(match[10] or 0) * 60 + int(match[11] or 0)) * (-1 if match[9] == "-" else 1)
    minutes = days_from_civil(year, month, day) * 1440 + hour * 60 + minute - offset
    return minutes * 60_000 + second * 1000 + round(Fraction(micros, 1000))


def binary_vector(value: Value) -> Value:
    """The `{"$binary"}` object of an array of float texts."""
    if not isinstance(value, list):
        raise ReferenceFormatError("a binary vector that is no array")
    raw = b"".join(struct.pack(">I", nearest_float32_bits(_number(element))) for element in value)
    return Members((("$binary", base64.b64encode(raw).decode()),))


def _number(value: Value) -> str:
    if not isinstance(value, Number):
        raise ReferenceFormatError("a vector's element is no number")
    return value.text


def nearest_float32_bits(text: str) -> int:
    """The bits of the float32 nearest to a decimal text, rounded once, ties to even, by exact fractions."""
    sign = 0x80000000 if text.startswith("-") else 0
    exact = abs(Fraction(text))
    guess: int = struct.unpack(">I", struct.pack(">f", float(exact)))[0]
    candidates = [bits for bits in (guess - 1, guess, guess + 1) if 0 <= bits < 0x7F800000]
    return sign | min(candidates, key=lambda bits: (abs(float32_fraction(bits) - exact), bits & 1))


def float32_fraction(bits: int) -> Fraction:
    """The exact value of the bits of a finite float32."""
    value: float = struct.unpack(">f", struct.pack(">I", bits))[0]
    return Fraction(value)
