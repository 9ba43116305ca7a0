"""Cassandra's types: what a value of each is in Python, in JSON, in bytes and in order.

A column's value is held as

    text, ascii       str                       date        days since 1970-01-01
    the integers      int                       time        nanoseconds since midnight
    decimal           Decimal, with its scale   timestamp   milliseconds since 1970-01-01
    float, double     float                     duration    months, days, nanoseconds
    boolean           bool                      uuid        canonical text
    blob, inet        bytes                     vector      a tuple of floats
    list, set         list (a set: in order)    map         a list of pairs, in the order of the keys
    a user's type     dict, without its nulls   tuple, nested types: whatever was put; nothing reads them

`from_json` takes what the Data API takes and refuses the rest in its words, `to_json` writes what it sends.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from tests.emulators.data_api import Number, canonical_number, dump, java_uuid, quote

Json = Any
Value = Any

INTEGER_BITS: dict[str, int] = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64, "counter": 64}
SCALARS: Final = (
    *("ascii", "bigint", "blob", "boolean", "counter", "date", "decimal", "double", "duration", "float", "inet"),
    *("int", "smallint", "text", "time", "timestamp", "timeuuid", "tinyint", "uuid", "varint"),
)
COLLECTIONS: Final = ("list", "set", "map")


class BadValue(ValueError):
    """The Data API's words for why a value is none of the column's."""


# ------------------------------------------------------------------------------------------------------ types


@dataclass(frozen=True)
class CqlType:
    """A type: `name` is a scalar's, `list`, `set`, `map`, `tuple`, `vector`, or `udt`."""

    name: str
    arguments: tuple[CqlType, ...] = ()
    frozen: bool = False
    dimension: int = 0
    udt: str = ""
    keyspace: str = ""
    fields: tuple[tuple[str, CqlType], ...] = ()

    @property
    def is_supported(self) -> bool:
        """Whether the Data API can read it."""
        if self.name == "vector":
            return self.arguments[0].name == "float"
        if self.name == "udt":
            return all(each.name in SCALARS for _, each in self.fields)
        if self.name in COLLECTIONS:
            *keys, value = self.arguments
            return all(key.name in SCALARS for key in keys) and (
                value.name in SCALARS or (value.name == "udt" and value.is_supported)
            )
        return self.name in SCALARS

    @property
    def api_name(self) -> str:
        """The name that listTables has for it."""
        if not self.is_supported:
            return "UNSUPPORTED"
        return "userDefined" if self.name == "udt" else self.name

    @property
    def has_text_keys(self) -> bool:
        return self.arguments[0].name in ("text", "ascii")


PARTS = re.compile(r"\s*([\w']+|[<>,])")


def parse_type(text: str, keyspace: str, types: Mapping[str, CqlType]) -> CqlType:
    """The type that CQL writes like that: `map<text, frozen<list<int>>>`, `vector<float, 3>`, `address`.

    >>> parse_type("frozen<list<int>>", "ks", {}).frozen
    True
    """
    parts = PARTS.findall(text)
    made, rest = take_type(parts, keyspace, types)
    if rest:
        raise ValueError(f"no CQL type: {text}")
    return made


def take_type(parts: Sequence[str], keyspace: str, types: Mapping[str, CqlType]) -> tuple[CqlType, Sequence[str]]:
    name, rest = parts[0], parts[1:]
    arguments: list[CqlType] = []
    dimension = 0
    while rest and rest[0] in (("<",) if not arguments else ("<", ",")):
        if rest[1].isdigit():
            dimension, rest = int(rest[1]), rest[2:]
        else:
            argument, rest = take_type(rest[1:], keyspace, types)
            arguments.append(argument)
    if arguments:
        rest = rest[1:]
    if name == "frozen":
        return replace(arguments[0], frozen=True), rest
    return named_type(name, tuple(arguments), dimension, keyspace, types), rest


def named_type(
    name: str, arguments: tuple[CqlType, ...], dimension: int, keyspace: str, types: Mapping[str, CqlType]
) -> CqlType:
    if name in types:
        return types[name]
    if name == "tuple":
        return CqlType(name, arguments, frozen=True)
    if name in (*COLLECTIONS, "vector"):
        return CqlType(name, arguments, dimension=dimension)
    if name not in SCALARS:
        raise ValueError(f"no CQL type in {keyspace}: {name}")
    return CqlType(name)


def cql_name(of: CqlType, *, with_frozen: bool = False) -> str:
    """How the driver prints the type, with or without `frozen<…>` around what is frozen."""
    if of.name == "vector":
        if with_frozen and of.is_supported:
            return f"vector<float, {of.dimension}>"
        return f"'org.apache.cassandra.db.marshal.VectorType({of.dimension})'"
    if of.name == "udt":
        text = f"{of.keyspace}.{of.udt}"
    elif of.arguments:
        text = f"{of.name}<{', '.join(cql_name(each, with_frozen=with_frozen) for each in of.arguments)}>"
    else:
        text = of.name
    return f"frozen<{text}>" if with_frozen and of.frozen else text


def hash_order(names: Sequence[str], capacity: int = 16) -> list[str]:
    """The order in which Java's HashMap of that capacity goes through strings that were put into it in that order."""
    while len(names) > capacity * 3 // 4:
        capacity *= 2
    return sorted(names, key=lambda name: java_hash(name) & capacity - 1)


def java_hash(text: str) -> int:
    """`String.hashCode`, its halves mixed as HashMap does."""
    made = 0
    for (unit,) in struct.iter_unpack(">H", text.encode("utf-16-be", "surrogatepass")):
        made = made * 31 + unit & 0xFFFFFFFF
    return made ^ made >> 16


# ---------------------------------------------------------------------------------------- dates and durations

DAY_MS: Final = 86_400_000
DATE = re.compile(r"([+-]?)(\d{4,10})-(\d\d)-(\d\d)")
TIME = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?")
TIMESTAMP = re.compile(r"(.+)[Tt](\d\d:\d\d:\d\d(?:\.\d{0,9})?)([Zz]|[+-]\d\d(?::?\d\d)?(?::?\d\d)?)")
DAYS_IN_MONTH: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def days_of(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the Gregorian calendar without an end on either side.

    >>> days_of(2024, 2, 29), days_of(-1, 1, 1)
    (19782, -719893)
    """
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def date_text(days: int) -> str:
    """As `LocalDate.toString` writes it.

    >>> [date_text(days) for days in (19782, -719893, 2932897)]
    ['2024-02-29', '-0001-01-01', '+10000-01-01']
    """
    era, of_era_days = divmod(days + 719_468, 146_097)
    of_era = (of_era_days - of_era_days // 1460 + of_era_days // 36_524 - of_era_days // 146_096) // 365
    of_year = of_era_days - (365 * of_era + of_era // 4 - of_era // 100)
    shifted = (5 * of_year + 2) // 153
    day, month = of_year - (153 * shifted + 2) // 5 + 1, shifted + (3 if shifted < 10 else -9)
    year = of_era + era * 400 + (month <= 2)
    sign = "-" if year < 0 else "+" if year > 9999 else ""
    return f"{sign}{abs(year):04}-{month:02}-{day:02}"


def parse_date(text: str) -> int:
    match = DATE.fullmatch(text)
    if not match:
        raise ValueError(f"Text '{text}' could not be parsed at index 0")
    year, month, day = int(match[1] + match[2]), int(match[3]), int(match[4])
    if not 1 <= month <= 12:
        raise ValueError(bad_field(text, "MonthOfYear", "1 - 12", month))
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= DAYS_IN_MONTH[month - 1] + (month == 2 and is_leap):
        raise ValueError(bad_field(text, "DayOfMonth", "1 - 28/31", day))
    return days_of(year, month, day)


def bad_field(text: str, name: str, valid: str, value: int) -> str:
    return f"Text '{text}' could not be parsed: Invalid value for {name} (valid values {valid}): {value}"


def parse_time(text: str) -> int:
    match = TIME.fullmatch(text)
    if not match:
        raise ValueError(f"Text '{text}' could not be parsed at index 0")
    hour, minute, second = (int(match[at] or 0) for at in (1, 2, 3))
    for name, value, last in (("HourOfDay", hour, 23), ("MinuteOfHour", minute, 59), ("SecondOfMinute", second, 59)):
        if value > last:
            raise ValueError(bad_field(text, name, f"0 - {last}", value))
    return (hour * 3600 + minute * 60 + second) * 10**9 + int((match[4] or "").ljust(9, "0"))


def time_text(nanos: int) -> str:
    """As `LocalTime.toString` writes it: no seconds if there are none, a fraction of 3, 6 or 9 digits."""
    seconds, fraction = divmod(nanos, 10**9)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}"
    if seconds % 60 or fraction:
        text += f":{seconds % 60:02}"
    return text + fraction_text(fraction)


def fraction_text(nanos: int) -> str:
    digits = f"{nanos:09}"
    if not nanos:
        return ""
    return "." + (digits if nanos % 1000 else digits[:6] if nanos % 10**6 else digits[:3])


def parse_timestamp(text: str) -> int:
    match = TIMESTAMP.fullmatch(text)
    if not match:
        raise ValueError(f"Text '{text}' could not be parsed at index 0")
    try:
        nanos = parse_time(match[2]) - offset_seconds(match[3]) * 10**9
        return parse_date(match[1]) * DAY_MS + nanos // 10**6
    except ValueError as error:
        raise ValueError(str(error).replace(f"'{match[1]}'", f"'{text}'")) from None


def offset_seconds(text: str) -> int:
    if text in ("Z", "z"):
        return 0
    digits = text[1:].replace(":", "").ljust(6, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:])
    return -seconds if text[0] == "-" else seconds


def timestamp_text(millis: int) -> str:
    """As `Instant.toString` writes it."""
    days, of_day = divmod(millis, DAY_MS)
    seconds, fraction = divmod(of_day, 1000)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{date_text(days)}T{clock}{fraction_text(fraction * 10**6)}Z"


UNITS: dict[str, tuple[int, int]] = {  # of a duration: which of its three parts, and how many of them
    "y": (0, 12),
    "mo": (0, 1),
    "w": (1, 7),
    "d": (1, 1),
    "h": (2, 3600 * 10**9),
    "m": (2, 60 * 10**9),
    "s": (2, 10**9),
    "ms": (2, 10**6),
    "us": (2, 1000),
    "ns": (2, 1),
}
IN_UNITS = re.compile(r"(\d+)(y|mo|w|d|h|s|ms|us|µs|ns|m)", re.IGNORECASE)
ISO = re.compile(r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")
ISO_WEEKS = re.compile(r"P(\d+)W")
ISO_LIKE_A_DATE = re.compile(r"P(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)")
ISO_UNITS: Final = ("y", "mo", "d", "h", "m", "s")
LIMITS: Final = (2**31 - 1, 2**31 - 1, 2**63 - 1)


def parse_duration(text: str) -> tuple[int, int, int]:
    """Months, days and nanoseconds; no fractions, which is why the server refuses what it sends.

    >>> parse_duration("1y2mo3w4d5h6m7s8ms9us10ns"), parse_duration("-PT1H")
    ((14, 25, 18367008009010), (0, 0, -3600000000000))
    """
    sign, source = (-1, text[1:]) if text.startswith("-") else (1, text)
    amounts = amounts_of(source)
    if amounts is None:
        raise ValueError(f"Unable to convert '{source}' to a duration")
    parts = [0, 0, 0]
    for amount, unit in amounts:
        at, size = UNITS[unit]
        parts[at] += amount * size
    for name, part, limit in zip(("months", "days", "nanoseconds"), parts, LIMITS, strict=True):
        if part > limit:
            raise ValueError(f"Invalid duration. The total number of {name} must be less or equal to {limit}")
    return sign * parts[0], sign * parts[1], sign * parts[2]


def amounts_of(source: str) -> list[tuple[int, str]] | None:
    """The numbers and their units; None if it is no duration."""
    if not source.startswith("P"):
        found = IN_UNITS.findall(source)
        units = [unit.lower().replace("µ", "u") for _, unit in found]
        order = [list(UNITS).index(unit) for unit in units]
        if "".join(map("".join, found)) != source or not found or sorted(set(order)) != order:
            return None
        return [(int(amount), unit) for (amount, _), unit in zip(found, units, strict=True)]
    if match := ISO_WEEKS.fullmatch(source):
        return [(int(match[1]), "w")]
    match = ISO_LIKE_A_DATE.fullmatch(source) or ISO.fullmatch(source)
    return match and [(int(each or 0), unit) for each, unit in zip(match.groups(), ISO_UNITS, strict=True)]


def duration_text(value: tuple[int, int, int]) -> str:
    """In ISO's form, as the Data API sends it.

    >>> [duration_text(each) for each in ((8, 4, 190), (0, 0, 0), (-1, -2, 0), (12, 0, 0))]
    ['P8M4DT0.00000019S', 'PT0S', '-P1M2D', 'P1Y']
    """
    months, days, nanos = map(abs, value)
    dates = zip((months // 12, months % 12, days), "YMD", strict=True)
    text = "".join(f"{amount}{unit}" for amount, unit in dates if amount)
    seconds, fraction = divmod(nanos, 10**9)
    clock = "".join(f"{each}{unit}" for each, unit in ((seconds // 3600, "H"), (seconds // 60 % 60, "M")) if each)
    if seconds % 60 or fraction:
        clock += f"{seconds % 60}" + f".{fraction:09}".rstrip("0").rstrip(".") + "S"
    if clock or not text:
        text += "T" + (clock or "0S")
    return ("-P" if min(value) < 0 else "P") + text


# ----------------------------------------------------------------------------------------------------- floats


def as_float32(value: float) -> float:
    """The nearest 32-bit float; infinity beyond the largest."""
    try:
        return float(struct.unpack(">f", struct.pack(">f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def java_double(value: float) -> str:
    """As `Double.toString` of Java 19 and later writes it, `NaN` and the infinities in quotes.

    >>> [java_double(each) for each in (0.1, 1e308, 5e-324, -6.42e-4, 100.0)]
    ['0.1', '1.0E308', '4.9E-324', '-6.42E-4', '100.0']
    """
    return java_number(value, repr(value))


def java_float(value: float) -> str:
    """The same for `Float.toString`.

    >>> [java_float(as_float32(each)) for each in (0.123456789, 3e38, 1e-40)]
    ['0.12345679', '3.0E38', '1.0E-40']
    """
    import numpy

    return java_number(value, str(numpy.float32(value)))


def java_number(value: float, shortest: str) -> str:
    if 1e-3 <= abs(value) < 1e7 and "e" not in shortest:
        return shortest  # in this range Python writes it as Java does
    if not math.isfinite(value):
        return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    if value == 0:
        return "-0.0" if math.copysign(1, value) < 0 else "0.0"
    digits, exponent = significant(shortest)
    if len(digits) == 1:  # Java looks at two digits, and takes the nearer of them
        digits, exponent = significant(f"{value:.1e}")
    sign = "-" if value < 0 else ""
    if not -3 <= exponent < 7:
        return f"{sign}{digits[0]}.{digits[1:] or '0'}E{exponent}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    digits = digits.ljust(exponent + 1, "0")
    return f"{sign}{digits[: exponent + 1]}.{digits[exponent + 1 :] or '0'}"


def significant(text: str) -> tuple[str, int]:
    """The digits, without zeros around them, and the exponent of the first."""
    mantissa, _, power = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    exponent = int(power or 0) + len(whole) - 1 - (len(whole + fraction) - len(digits))
    return digits.rstrip("0") or "0", exponent


# -------------------------------------------------------------------------------------------------- from JSON

NO_CODEC: Final = "no codec matching value type"
NUMBERS: Final = ("java.math.BigDecimal", "java.math.BigInteger", "java.lang.Long")
STRING: Final = "java.lang.String"
EJSON: Final = "io.stargate.sgv2.jsonapi.api.model.command.clause.filter.EJSONWrapper"
NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")
JAVA_TYPES: dict[str, tuple[str, ...]] = {  # what the server makes of JSON that it takes for the type
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint", "varint", "decimal"), NUMBERS),
    **dict.fromkeys(("float", "double"), (*NUMBERS, STRING)),
    **dict.fromkeys(("ascii", "text", "date", "time", "duration", "uuid", "timeuuid", "inet"), (STRING,)),
    "timestamp": (EJSON, STRING),
    "blob": (EJSON,),
    "boolean": ("java.lang.Boolean",),
}


def java_type(value: Json) -> str:
    if type(value) is Number:
        if "." in value or "e" in value.lower():
            return NUMBERS[0]
        return NUMBERS[2] if -(2**63) <= int(value) < 2**63 else NUMBERS[1]
    if type(value) is dict:
        return EJSON if len(value) == 1 and next(iter(value)).startswith("$") else "java.util.LinkedHashMap"
    return {str: STRING, bool: "java.lang.Boolean", list: "java.util.ArrayList"}.get(type(value), "null")


def from_json(of: CqlType, value: Json, *, exact: bool = False) -> Value:
    """The value that an insert stores; BadValue if the Data API takes none of it.

    With `exact` it is what CQL would store: a decimal keeps its scale, a zero its sign, a vector may hold NaN.
    """
    if not of.is_supported:
        return value  # put by CQL; nothing looks at it
    if of.name in READERS:
        return READERS[of.name](of, value, exact)
    return scalar_from_json(of, value, exact)


def scalar_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    """BadValue if the kind of JSON is wrong, or the value."""
    if java_type(value) not in JAVA_TYPES.get(of.name, NUMBERS):
        raise BadValue(NO_CODEC)
    if of.name in INTEGER_BITS:
        return integer_from_json(of.name, value)
    try:
        return exactly(of.name, value) if exact else SCALAR_READERS[of.name](value)
    except BadValue:
        raise
    except (ValueError, OverflowError) as error:
        why = f"Invalid String value for type `{of.name.upper()}`; problem: {error}"
        raise BadValue(why) from None


def exactly(name: str, value: Json) -> Value:
    if name == "decimal":
        return Decimal(value)
    if name in ("float", "double"):
        return as_float32(float(value)) if name == "float" else float(value)
    return SCALAR_READERS[name](value)


def integer_from_json(name: str, value: Number) -> int:
    made, bits = varint_from_json(value), INTEGER_BITS[name]
    if -(1 << bits - 1) <= made < 1 << bits - 1:
        return made
    kind = java_type(value)
    if kind == NUMBERS[0]:
        raise BadValue("Overflow")
    if kind == NUMBERS[1]:
        java = {"tinyint": "byte", "smallint": "short", "int": "int"}.get(name, "long")
        raise BadValue(f"BigInteger out of {java} range")
    raise BadValue(f"Overflow, value too big for {name.upper()}")


def varint_from_json(value: Number) -> int:
    number = Decimal(value)
    if number != number.to_integral_value():
        raise BadValue("Rounding necessary")
    return int(number)


def float_from_json(value: Json) -> float:
    if type(value) is Number:
        return float(value) + 0.0  # no negative zero: BigDecimal has none
    if value not in NOT_FINITE:
        raise BadValue(f'Unsupported String value: only "{NOT_FINITE[0]}", "{NOT_FINITE[1]}" and "{NOT_FINITE[2]}"')
    return float(value)


def ascii_from_json(value: str) -> str:
    for at, char in enumerate(value):
        if not char.isascii():
            where = f"index #{at} (length={len(value)})"
            raise BadValue(f"String contains non-ASCII character at {where}: \\u{ord(char):04X}")
    return value


def timestamp_from_json(value: Json) -> int:
    if type(value) is dict:
        if "$date" not in value or type(value["$date"]) is not Number:
            raise BadValue(NO_CODEC)
        return int(value["$date"])
    return parse_timestamp(value)


def blob_from_json(value: dict[str, Json]) -> bytes:
    if type(value.get("$binary")) is not str:
        raise BadValue(NO_CODEC)
    try:
        return base64.b64decode(value["$binary"], validate=True)
    except binascii.Error as error:
        raise BadValue(f"Unsupported JSON value in EJSON $binary wrapper: not valid base64: {error}") from None


def uuid_from_json(value: str) -> str:
    try:
        return java_uuid(value)
    except ValueError:
        raise ValueError(f"Invalid UUID string: {value}") from None


def inet_from_json(value: str) -> bytes:
    if value == "localhost":
        return b"\x7f\0\0\1"
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"Invalid IP address value '{value}'") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).packed


SCALAR_READERS: dict[str, Callable[[Any], Value]] = {
    "ascii": ascii_from_json,
    "blob": blob_from_json,
    "boolean": bool,
    "date": parse_date,
    "decimal": lambda value: Decimal(canonical_number(value)),
    "double": float_from_json,
    "duration": parse_duration,
    "float": lambda value: as_float32(float_from_json(value)),
    "inet": inet_from_json,
    "text": str,
    "time": parse_time,
    "timestamp": timestamp_from_json,
    "timeuuid": uuid_from_json,
    "uuid": uuid_from_json,
    "varint": varint_from_json,
}


def element_from_json(of: CqlType, value: Json, exact: bool, what: str) -> Value:
    """A part of a collection; `what` says which."""
    if of.name == "udt":
        return udt_from_json(of, value, exact)
    codecs = JAVA_TYPES[of.name]
    if java_type(value) not in codecs:
        actual = "actual value type" if "element" in what else "actual type"
        raise BadValue(
            f"no codec matching {what} `{of.name.upper()}`, {actual} `{java_type(value)}` "
            f"(checked {len(codecs)} codecs: [{', '.join(codecs)}])"
        )
    return scalar_from_json(of, value, exact)


def list_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    if type(value) is not list:
        raise BadValue(NO_CODEC)
    if None in value:
        raise BadValue(f"null values are not allowed in {of.name} column")
    (element,) = of.arguments
    return [element_from_json(element, each, exact, "(list/set) declared element type") for each in value]


def set_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    pairs = [(each, None) for each in list_from_json(of, value, exact)]
    return [each for each, _ in sorted_pairs(of.arguments[0], pairs)]


def map_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    pairs = pairs_of(value)
    if any(each is None for pair in pairs for each in pair):
        raise BadValue("null keys/values are not allowed in map column")
    key, item = of.arguments
    what = "map declared {} type"
    made = [
        (
            element_from_json(key, each, exact, what.format("key")),
            element_from_json(item, other, exact, what.format("value")),
        )
        for each, other in pairs
    ]
    return sorted_pairs(key, made)


def pairs_of(value: Json) -> list[tuple[Json, Json]]:
    if type(value) is dict:
        return list(value.items())
    if type(value) is not list or not all(type(each) is list and len(each) == 2 for each in value):
        raise BadValue(NO_CODEC)
    return [(first, second) for first, second in value]


def sorted_pairs(of: CqlType, pairs: Sequence[tuple[Value, Value]]) -> list[tuple[Value, Value]]:
    """Sorted by the first of each pair, the last of equal ones kept."""
    last = {order_key(of, first): (first, second) for first, second in pairs}
    return [last[key] for key in sorted(last)]


def udt_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    """The fields that are not null, in the order of the type."""
    given = dict(pairs_of(value))
    fields = dict(of.fields)
    for name, item in given.items():
        if name not in fields:
            raise BadValue(f"Missing field '{name}' in UDT '{of.udt}'.")
        if item is not None and java_type(item) not in JAVA_TYPES[fields[name].name]:
            raise BadValue(
                f"no codec matching in UDT {of.udt} for field {name}, declared type `{fields[name].name.upper()}`, "
                f"actual type `{java_type(item)}`"
            )
    present = [name for name in fields if given.get(name) is not None]
    return {name: scalar_from_json(fields[name], given[name], exact) for name in present}


def vector_from_json(of: CqlType, value: Json, exact: bool) -> Value:
    if type(value) is dict:
        data = blob_from_json(value)
        if len(data) % 4:
            raise BadValue(f"binary value to decode, {len(data)} bytes, is not a multiple of 4")
        check_length(of, len(data) // 4)
        return struct.unpack(f">{len(data) // 4}f", data)
    if type(value) is not list:
        raise BadValue(NO_CODEC)
    check_length(of, len(value))
    return tuple(as_float32(vector_element(each, at, of, exact)) for at, each in enumerate(value))


def check_length(of: CqlType, length: int) -> None:
    if length != of.dimension:
        raise BadValue(f"expected vector of length {of.dimension}, got one with {length} elements")


def vector_element(value: Json, at: int, of: CqlType, exact: bool) -> float:
    if type(value) is Number or (exact and value in NOT_FINITE):
        return float(value) if exact else float_from_json(value)
    kinds = {str: ("STRING", "String"), bool: ("BOOLEAN", "Boolean"), type(None): ("NULL", "null")}
    kind, java = kinds.get(type(value), ("SUB_DOC", "LinkedHashMap"))
    shown = value if isinstance(value, str) else dump(value)
    raise BadValue(
        f"expected JSON Number value as Vector element at position #{at} (of {of.dimension}), instead have: "
        f"JsonLiteral{{type={kind}, value({java})={shown}}}"
    )


READERS: dict[str, Callable[[CqlType, Json, bool], Value]] = {
    "list": list_from_json,
    "map": map_from_json,
    "set": set_from_json,
    "udt": udt_from_json,
    "vector": vector_from_json,
}


# ---------------------------------------------------------------------------------------------------- to JSON


def binary_json(value: bytes) -> str:
    return f'{{"$binary":"{base64.b64encode(value).decode()}"}}'


def inet_text(value: bytes) -> str:
    """As `InetAddress.getHostAddress` writes it: no `::`, no leading zeros."""
    if len(value) == 4:
        return ".".join(map(str, value))
    return ":".join(f"{part:x}" for part in struct.unpack(">8H", value))


def udt_json(of: CqlType, value: Mapping[str, Value]) -> str:
    fields = dict(of.fields)
    names = [name for name in hash_order(list(fields)) if name in value]
    return "{" + ",".join(f"{quote(name)}:{to_json(fields[name], value[name])}" for name in names) + "}"


def list_json(of: CqlType, value: Sequence[Value]) -> str:
    return "[" + ",".join(to_json(of.arguments[0], each) for each in value) + "]"


def map_json(of: CqlType, value: Sequence[tuple[Value, Value]]) -> str:
    key, item = of.arguments
    pairs = [(to_json(key, first), to_json(item, second)) for first, second in value]
    if of.has_text_keys:
        return "{" + ",".join(f"{first}:{second}" for first, second in pairs) + "}"
    return "[" + ",".join(f"[{first},{second}]" for first, second in pairs) + "]"


def vector_json(of: CqlType, value: Sequence[float]) -> str:
    import numpy

    texts = map(str, numpy.array(value, dtype=numpy.float32))
    return "[" + ",".join(map(java_number, value, texts)) + "]"


WRITERS: dict[str, Callable[[CqlType, Any], str]] = {
    "blob": lambda of, value: binary_json(value),
    "boolean": lambda of, value: "true" if value else "false",
    "date": lambda of, value: f'"{date_text(value)}"',
    "double": lambda of, value: java_double(value),
    "duration": lambda of, value: f'"{duration_text(value)}"',
    "float": lambda of, value: java_float(value),
    "inet": lambda of, value: f'"{inet_text(value)}"',
    "list": list_json,
    "map": map_json,
    "set": list_json,
    "time": lambda of, value: f'"{time_text(value)}"',
    "timestamp": lambda of, value: f'"{timestamp_text(value)}"',
    "udt": udt_json,
    "vector": vector_json,
    **dict.fromkeys(("ascii", "text", "uuid", "timeuuid"), lambda of, value: quote(value)),
    **dict.fromkeys((*INTEGER_BITS, "varint", "decimal"), lambda of, value: str(value)),
}


def to_json(of: CqlType, value: Value) -> str:
    """The JSON that the Data API sends."""
    return WRITERS[of.name](of, value)


# ---------------------------------------------------------------------------------------------------- to bytes

STRUCTS: dict[str, str] = {
    "tinyint": ">b",
    "smallint": ">h",
    "int": ">i",
    "bigint": ">q",
    "counter": ">q",
    "time": ">q",
    "timestamp": ">q",
    "float": ">f",
    "double": ">d",
    "boolean": ">?",
}


def varint_bytes(value: int) -> bytes:
    """As `BigInteger.toByteArray` does it."""
    return value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, "big", signed=True)


def to_bytes(of: CqlType, value: Value) -> bytes:
    """Cassandra's bytes of a value, for those types that a primary key can have."""
    if of.name in STRUCTS:
        return struct.pack(STRUCTS[of.name], value)
    if of.name in ("ascii", "text"):
        return str(value).encode("utf-8", "replace")
    if of.name in ("blob", "inet"):
        return bytes(value)
    if of.name in ("uuid", "timeuuid"):
        return bytes.fromhex(value.replace("-", ""))
    if of.name == "date":
        return struct.pack(">I", value + (1 << 31))
    return varint_bytes(value) if of.name == "varint" else wide_bytes(of, value)


def wide_bytes(of: CqlType, value: Value) -> bytes:
    if of.name == "decimal":
        sign, digits, exponent = Decimal(value).as_tuple()
        unscaled = int("".join(map(str, digits))) * (-1 if sign else 1)
        return struct.pack(">i", -int(exponent)) + varint_bytes(unscaled)
    if of.name in ("list", "set"):
        parts = [to_bytes(of.arguments[0], each) for each in value]
        return struct.pack(">i", len(parts)) + b"".join(struct.pack(">i", len(each)) + each for each in parts)
    raise NotImplementedError(f"the bytes of a {of.name}")


def from_bytes(of: CqlType, data: bytes) -> Value:
    """The value whose bytes these are; ValueError if there is none."""
    if of.name in STRUCTS:
        try:
            return struct.unpack(STRUCTS[of.name], data)[0]
        except struct.error as error:
            raise ValueError(str(error)) from None
    if of.name in ("ascii", "text"):
        return data.decode()
    if of.name in ("blob", "inet"):
        return data
    if of.name in ("uuid", "timeuuid"):
        return str(uuid.UUID(bytes=data))
    if of.name == "date":
        return int.from_bytes(data, "big") - (1 << 31)
    if of.name == "varint":
        return int.from_bytes(data, "big", signed=True)
    if of.name == "decimal" and len(data) > 4:
        scale, unscaled = (int.from_bytes(each, "big", signed=True) for each in (data[:4], data[4:]))
        return Decimal(f"{unscaled}E{-scale}")  # no arithmetic: it would round
    raise ValueError(f"no bytes of a {of.name}: {data.hex()}")


# ---------------------------------------------------------------------------------------------------- in order


def order_key(of: CqlType, value: Value) -> Any:
    """What sorts values as the type's comparator does; equal for values that it takes for equal."""
    if of.name in ORDER_KEYS:
        return ORDER_KEYS[of.name](value)
    if of.name == "udt":
        return tuple((name in value, name in value and order_key(each, value[name])) for name, each in of.fields)
    return value


def float_order(value: float) -> tuple[bool, float, float]:
    return (True, 0.0, 0.0) if math.isnan(value) else (False, value, math.copysign(1, value))


def uuid_order(text: str) -> tuple[int, int, bytes]:
    data = bytes.fromhex(text.replace("-", ""))
    version = data[6] >> 4
    return version, uuid_time(data) if version == 1 else 0, data


def uuid_time(data: bytes) -> int:
    return int.from_bytes(data[6:8] + data[4:6] + data[:4], "big") & (1 << 60) - 1


def timeuuid_order(text: str) -> tuple[int, bytes]:
    data = bytes.fromhex(text.replace("-", ""))
    return uuid_time(data), bytes(byte ^ 0x80 for byte in data[8:])


ORDER_KEYS: dict[str, Callable[[Any], Any]] = {
    "ascii": lambda value: value.encode(),
    "double": float_order,
    "float": float_order,
    "text": lambda value: value.encode("utf-8", "replace"),
    "timeuuid": timeuuid_order,
    "uuid": uuid_order,
}
