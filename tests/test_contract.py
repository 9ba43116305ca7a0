"""The contract: what a document becomes as a line and back, against a reader that shares nothing with the product."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import random
import re
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import astra_backup
import restore
from astra_backup import (
    DataFileWriter,
    DataStats,
    FormatError,
    LossyError,
    Manifest,
    compact_json,
    decode_document,
    decode_vector,
    encode_document,
    encode_vector,
    parse_snapshot_name,
)
from restore import DataReader, iter_lines
from tests import reference
from tests.reference import Members, Number

VALUES = Path(__file__).parent / "data" / "values"
DOCUMENTS = settings(
    max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
LINES = settings(DOCUMENTS, max_examples=400)
SMALL = settings(DOCUMENTS, max_examples=300)


def corpus(*kinds: str) -> list[Any]:
    """The corpus's cases of some kinds, as pytest parameters."""
    params = []
    for path in sorted(VALUES.glob("*.json")):
        content = json.loads(path.read_text())
        for kind in kinds:
            for case in content[kind]:
                params.append(pytest.param(case, id=f"{path.stem}-{kind}-{case['description'][:40]}"))
    return params


def normal_vector(line: bytes) -> Any:
    """A line's value, where the floats of a marked vector are compared as numbers: their spelling is free."""
    document = reference.parse(line)
    assert isinstance(document, Members)
    if document.pairs[-1] != ("$backupVector", "binary"):
        return document
    return [
        (name, [str(Decimal(element.text).normalize()) for element in value] if name == "$vector" else value)  # type: ignore[union-attr]
        for name, value in document.pairs
    ]


def read_line(line: bytes) -> bytes:
    """The document of a line, as every reader of a data file gets it: decoded and checked."""
    found = [line for line, *_ in DataReader(io.BytesIO(line), compressed=False)]
    if len(found) != 1:
        raise FormatError("not one line")
    return decode_document(found[0])


# ======================================================================================================================
# The corpus
# ======================================================================================================================


@pytest.mark.parametrize("case", corpus("valid", "odd"))
def test_corpus_encodes(case: dict[str, str]) -> None:
    """Every value in the corpus becomes the line that the format's table says."""
    line, _ = encode_document(case["document"].encode())

    assert normal_vector(line) == normal_vector(case["line"].encode())
    if b'"$backupVector"' not in line:
        assert line.decode() == case["line"]


@pytest.mark.parametrize("case", corpus("valid", "odd", "legacy"))
def test_corpus_decodes(case: dict[str, str]) -> None:
    """Every line in the corpus becomes its document again, byte for byte, older scripts' lines too."""
    line, document = case["line"].encode(), case["document"].encode()

    assert compact_json(read_line(line)) == document
    if compact_json(line) == line:
        assert decode_document(line) == document


@pytest.mark.parametrize("case", corpus("valid", "odd"))
def test_corpus_round_trips(case: dict[str, str]) -> None:
    """A document that was encoded decodes to the same bytes, and encoding it again gives the same line."""
    document = case["document"].encode()
    line, _ = encode_document(document)

    assert decode_document(line) == document
    assert encode_document(decode_document(line))[0] == line


@pytest.mark.parametrize("case", corpus("valid", "odd", "legacy"))
def test_corpus_agrees_with_the_reference(case: dict[str, str]) -> None:
    """The reference reader, which knows only the table, reads the corpus's lines as the corpus's documents."""
    assert reference.decode_line(case["line"].encode()) == reference.parse(case["document"].encode())


@pytest.mark.parametrize("case", corpus("refused"))
def test_corpus_refuses_what_would_be_lossy(case: dict[str, str]) -> None:
    """A document that holds a name newer than this tool is refused, loudly, with a hint at what to extend."""
    reference.parse(case["document"].encode())  # it is JSON: the refusal is about what it says

    with pytest.raises(LossyError, match="Refusing to write a lossy backup") as caught:
        encode_document(case["document"].encode())
    assert "Extend" in caught.value.hint


@pytest.mark.parametrize("case", corpus("decodeErrors"))
def test_corpus_refuses_broken_lines(case: dict[str, str]) -> None:
    """A line that the format does not allow raises FormatError and nothing else."""
    with pytest.raises(FormatError):
        read_line(case["line"].encode())


@pytest.mark.parametrize("case", corpus("valid", "odd"))
def test_white_space_between_tokens_is_not_content(case: dict[str, str]) -> None:
    """JSON with white space between its tokens is the same document once it is compact."""
    document = case["document"].encode()

    spaced = msgspec.json.format(document, indent=3)

    assert compact_json(spaced) == compact_json(document) == document
    assert encode_document(spaced)[0] == encode_document(document)[0]
    assert (
        encode_document(b" \n" + document.replace(b'"$vector":', b'"$vector"\t: ') + b"\r")[0]
        == encode_document(document)[0]
    )
    assert compact_json(msgspec.json.format(encode_document(document)[0], indent=1)) == encode_document(document)[0]


@pytest.mark.parametrize("white", [b" ", b"\n", b"\t", b"\r", b" \r\n\t "])
def test_compact_json_takes_every_white_space(white: bytes) -> None:
    """Every white space that JSON knows goes, and that in strings stays."""
    tokens = [b"{", b'"_id"', b":", b"1E+2", b",", b'"a b"', b":", b"[", b'" , : "', b",", b"-0.10", b"]", b"}"]

    assert compact_json(white.join([b"", *tokens, b""])) == b'{"_id":1E+2,"a b":[" , : ",-0.10]}'


@pytest.mark.parametrize(
    "text", [rb'"\ud800"', rb'"a\ud83dz\u0041"', rb'"\udc00"', rb'"\ud800\ud800"', rb'{"\udfff":1}']
)
def test_lone_surrogates_never_pass_silently(text: bytes) -> None:
    """Half a surrogate pair, which no server can hold, is kept to the byte or refused as no document."""
    document = b'{"_id":1,"v":' + text + b"}"

    try:
        line, _ = encode_document(compact_json(document))
    except FormatError:
        return
    assert decode_document(line) == document


@pytest.mark.parametrize(
    "text", [b"", b"5", b"[]", b"null", b'"x"', b"{}", b'{"a":1}', b'{"_id":1', b'{"a":{"_id":1}}']
)
def test_what_is_no_document_is_refused(text: bytes) -> None:
    """What is no object, or has no `_id`, is no document."""
    with pytest.raises(FormatError):
        encode_document(text)


@pytest.mark.parametrize("count", [1, 2, 1536, 4096])
def test_long_vectors_round_trip(count: int) -> None:
    """A vector of any length comes back in the form and with the bytes it had."""
    numbers = random.Random(count)
    raw = struct.pack(f">{count}f", *(numbers.gauss(0, 1) for _ in range(count)))
    binary = b'{"_id":1,"$vector":{"$binary":"' + base64.b64encode(raw) + b'"},"z":0}'
    array = b'{"_id":1,"$vector":[' + b",".join(repr(numbers.random()).encode() for _ in range(count)) + b"]}"

    line, parts = encode_document(binary)

    assert (parts.has_vector, parts.has_binary_vector) == (True, True)
    assert decode_document(line) == binary
    assert reference.decode_line(line) == reference.parse(binary)
    assert len(reference.parse(line).get("$vector")) == count  # type: ignore[union-attr, arg-type]
    assert encode_document(array)[0] == array == decode_document(array)


@pytest.mark.parametrize(
    ("value", "count"),
    [('{"$date":1}', 40_000), ('{"$date":"x"}', 8_000), ("1E+400", 80_000), ('{"a$":"\\"$b"}', 40_000)],
)
def test_documents_take_linear_time(value: str, count: int) -> None:
    """A document of eight times the size takes some eight times as long, whatever fills it; 64 would be quadratic."""

    def cost_s(count: int) -> float:
        document = ('{"_id":1,"v":[' + ",".join([value] * count) + "]}").encode()
        started = time.process_time()
        assert decode_document(encode_document(document)[0]) == document
        return time.process_time() - started

    assert any(cost_s(count) < 24 * cost_s(count // 8) for _ in range(5))


def test_a_vector_that_is_an_array_is_not_searched_for_long_numbers() -> None:
    """An array of floats costs no more than a few times what a string of the same length costs."""
    numbers = ",".join(repr(random.Random(number).random()) for number in range(100_000))
    texts = [b'{"_id":1,"$vector":[%b]}' % numbers.encode(), b'{"_id":1,"v":"%b"}' % numbers.encode()]

    def cost_s(text: bytes) -> float:
        started = time.process_time()
        encode_document(text)
        return time.process_time() - started

    array_s, string_s = (min(cost_s(text) for _ in range(10)) for text in texts)
    assert array_s < 8 * string_s


# ======================================================================================================================
# Random documents, as text
# ======================================================================================================================

_PIECES = [
    *[
        "a",
        "Z",
        " ",
        "é",
        "€",
        "😀",
        "\u2028",
        "\x7f",
        "\ufeff",
        "$",
        "/",
        "'",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "-1E+400",
    ],
    *['\\"', "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t", "\\u0041", "\\u0024", "\\u00e9", "\\ud83d\\ude00"],
    *["\\u0000", "\\u001F", '{\\"$date\\":1}', '\\"$vector\\":[1]', ',\\"$backupVector\\":\\"binary\\"}'],
    *['{\\"$backupType\\":\\"uuid\\",\\"value\\":1}', '\\"nextPageState\\":null', "12345678901234567890.5", "$vector"],
    '\\"$new\\":',
]
_HEX = "0123456789abcdefABCDEF"
_DATES_MS = [0, 268435456000, 536870912000, 1073741824000, 2147483648000, -62135596800000, 253402300799999, 2**63]


def digits(least: int, most: int) -> st.SearchStrategy[str]:
    """A run of decimal digits."""
    return st.text("0123456789", min_size=least, max_size=most)


string_bodies = st.lists(st.sampled_from(_PIECES), max_size=6).map("".join)
strings = string_bodies.map('"{}"'.format)
integers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.builds("{}{}{}".format, st.sampled_from(["", "-"]), st.sampled_from("123456789"), digits(0, 98)),
    st.sampled_from(["0", "-0"]),
)
numbers = st.one_of(
    integers,
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["", "-"]),
        st.one_of(st.just("0"), st.builds("{}{}".format, st.sampled_from("123456789"), digits(0, 25))),
        st.one_of(st.just(""), digits(1, 40).map(".{}".format)),
        st.one_of(
            st.just(""),
            st.builds(
                "{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 400).map(str)
            ),
            st.sampled_from(["E+2147483647", "E-2147483648", "e0005", "E+308", "E-324"]),
        ),
    ),
)
uuids = st.text(_HEX, min_size=32, max_size=32).map(lambda h: f'"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"')
scalars = st.one_of(strings, numbers, st.sampled_from(["true", "false", "null"]))
# What an unindexed field may hold for a type's value. A typed value inside a typed value is in the corpus.
odd_values = st.one_of(
    scalars, st.lists(scalars, max_size=3).map(lambda v: f"[{','.join(v)}]"), scalars.map('{{"a":{}}}'.format)
)
dates = st.one_of(
    st.integers(-(10**14), 3 * 10**14), st.builds(int.__add__, st.sampled_from(_DATES_MS), st.integers(-(10**9), 10**9))
)
typed = st.one_of(
    dates.map('{{"$date":{}}}'.format),
    integers.map('{{"$date":{}}}'.format),
    uuids.map('{{"$uuid":{}}}'.format),
    st.text(_HEX, min_size=24, max_size=24).map('{{"$objectId":"{}"}}'.format),
    st.binary(max_size=20).map(lambda raw: f'{{"$binary":"{base64.b64encode(raw).decode()}"}}'),
    st.builds('{{"${}":{}}}'.format, st.sampled_from(["date", "uuid", "objectId", "binary"]), odd_values),
)
names = string_bodies.filter(lambda body: body != "" and not body.startswith(("$", "\\u0024")))


def unique(members: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Members whose names differ once their escapes are read."""
    return list({json.loads(f'"{name}"'): (name, value) for name, value in members}.values())


def object_text(members: list[tuple[str, str]]) -> str:
    """The JSON text of an object."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"


values = st.recursive(
    st.one_of(scalars, typed),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda elements: f"[{','.join(elements)}]"),
        st.lists(st.tuples(names, inner), max_size=4).map(lambda members: object_text(unique(members))),
    ),
    max_leaves=8,
)
float32_bits = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 0x7F7FFFFF, 0x007FFFFF, 0x00800000, 0x15AE43FD])
)
finite_bits = float32_bits.filter(lambda bits: bits & 0x7F800000 != 0x7F800000)


def binary_text(bits: list[int]) -> str:
    """The server's text of a binary vector."""
    return '{"$binary":"' + base64.b64encode(struct.pack(f">{len(bits)}I", *bits)).decode() + '"}'


vectors = st.one_of(
    st.none(),
    st.just("null"),
    st.lists(numbers, max_size=5).map(lambda elements: f"[{','.join(elements)}]"),
    st.lists(finite_bits, max_size=8).map(binary_text),
    st.lists(finite_bits, max_size=8).map(binary_text),
    st.lists(float32_bits, min_size=1, max_size=4).map(lambda bits: binary_text([*bits, 0x7FC00001])),
    st.one_of(st.binary(max_size=9).map(lambda raw: base64.b64encode(raw).decode()), string_bodies).map(
        '{{"$binary":"{}"}}'.format
    ),
)
texts = st.one_of(st.none(), st.sampled_from(["null", '""', '" \\t\\n"', '"\\u0020"', '"\\u00a0"']), strings)
ids = st.one_of(strings, numbers, typed, st.sampled_from(["true", "null"]))


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """The compact JSON text of a document as the server could hold it."""
    members = [m for m in unique(draw(st.lists(st.tuples(names, values), max_size=4))) if m[0] != "_id"]
    for name, strategy in (("$vector", vectors), ("$vectorize", texts), ("$lexical", texts)):
        if (value := draw(strategy)) is not None:
            members.insert(draw(st.integers(0, len(members))), (name, value))
    return object_text([("_id", draw(ids)), *members]).encode()


def number_tokens(value: reference.Value) -> list[str]:
    """The texts of all numbers in a value."""
    if isinstance(value, Number):
        return [value.text]
    if isinstance(value, Members):
        return [token for _, member in value.pairs for token in number_tokens(member)]
    return [token for element in value for token in number_tokens(element)] if isinstance(value, list) else []


@DOCUMENTS
@given(documents())
def test_every_document_round_trips(document: bytes) -> None:
    """A document comes back byte for byte from one line of JSON, which an independent reader understands, too."""
    line, _ = encode_document(document)

    assert decode_document(line) == document
    assert b"\n" not in line
    assert b"\r" not in line
    assert compact_json(line) == line
    assert encode_document(document)[0] == line
    assert reference.decode_line(line) == reference.parse(document)
    assert reference.same_value(decode_document(line), document)


@LINES
@given(documents())
def test_a_common_reader_loses_no_number(document: bytes) -> None:
    """A reader of 64-bit floats gets each fraction and exponent outside `$vector` as it was; others are wrapped."""
    line = reference.parse(encode_document(document)[0])

    assert isinstance(line, Members)
    outside = Members(tuple(pair for pair in line.pairs if pair[0] != "$vector"))
    for token in number_tokens(outside):
        if any(mark in token for mark in ".eE"):
            assert survives_float(token)
    for token in decimal_tokens(outside):
        assert not survives_float(token)


def survives_float(token: str) -> bool:
    """Whether a number is the shortest text of its nearest 64-bit float, as a value."""
    try:
        return Decimal(token) == Decimal(repr(float(token)))
    except InvalidOperation:
        return False


def decimal_tokens(value: reference.Value) -> list[str]:
    """The texts of all wrapped decimals in a line."""
    if isinstance(value, Members):
        if value.get("$backupType") == "decimal":
            return [str(value.get("value"))]
        return [token for _, member in value.pairs for token in decimal_tokens(member)]
    return [token for element in value for token in decimal_tokens(element)] if isinstance(value, list) else []


@LINES
@given(documents())
def test_the_parts_say_what_a_document_holds(document: bytes) -> None:
    """The flags that the manifest's counts are made of agree with the document's top-level fields."""
    value = json.loads(document)
    vector, vectorize = value.get("$vector"), value.get("$vectorize")

    _, parts = encode_document(document)

    assert parts.has_vector == (vector is not None)
    assert parts.has_binary_vector == isinstance(vector, dict)
    assert parts.has_vectorize == bool(vectorize is not None and vectorize.strip())
    assert parts.has_lexical == (value.get("$lexical") is not None)
    assert reference.parse(bytes(parts.id)) == reference.parse(document).get("_id")  # type: ignore[union-attr]


@SMALL
@given(documents(), st.integers(0, 10), st.sampled_from(["$new", "$backupType", "$date2", '$a\\"b', "\\u0024new"]))
def test_an_unknown_name_is_refused_wherever_it_stands(document: bytes, seed: int, name: str) -> None:
    """A `$`-name newer than this tool is refused at the place of any member of any document."""
    places = [at for at in range(1, len(document)) if is_member_start(document, at)]
    at = places[seed % len(places)]
    poisoned = document[:at] + f'"{name}":1,'.encode() + document[at:]
    reference.parse(poisoned)

    with pytest.raises(LossyError):
        encode_document(poisoned)


def is_member_start(document: bytes, at: int) -> bool:
    """Whether the top-level member starts at this offset: what stands before, closed, is an object."""
    if document[at - 1 : at] not in (b"{", b",") or document[at : at + 1] != b'"':
        return False
    try:
        head = json.loads(document[: at - 1] + b"}" if at > 1 else b"{}")
        tail = json.loads(b"{" + document[at:])
    except ValueError:
        return False
    return isinstance(head, dict) and isinstance(tail, dict)


# ======================================================================================================================
# Damage
# ======================================================================================================================

_INSERTS = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"$",
    b"0",
    b"\n",
    b"\x00",
    b"\xff",
    b"\xd9\xa1",
    b"null",
    b"1e39",
]


def damaged(line: bytes, draw: random.Random) -> bytes:
    """A line with one to three random faults."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(line) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            line = line[:at]
        elif kind == 1:
            line = line[:at] + bytes([draw.randrange(256)]) + line[at + 1 :]
        elif kind == 2:
            line = line[:at] + line[at + draw.randint(1, 12) :]
        elif kind == 3:
            line = line[:at] + draw.choice(_INSERTS) + line[at:]
        elif kind == 4 and line:
            byte = draw.randrange(len(line))
            line = line[:byte] + bytes([line[byte] ^ 1 << draw.randrange(8)]) + line[byte + 1 :]
        else:
            line = line[:at] + line[draw.randrange(len(line) + 1) :]
    return line


def decode_or_refuse(line: bytes) -> bytes | None:
    """The document of a line, or None for FormatError; every other exception, and what is not JSON, is a failure."""
    try:
        text = read_line(line)
    except FormatError:
        return None
    assert isinstance(json.loads(text), dict)
    return text


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@LINES
@given(documents(), st.integers(0, 2**32))
def test_a_damaged_line_is_refused_or_another_document(document: bytes, seed: int) -> None:
    """Whatever happens to a line, decoding it raises FormatError or gives JSON, never another exception."""
    line, draw = encode_document(document)[0], random.Random(seed)

    for _ in range(8):
        decode_or_refuse(damaged(line, draw))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_corpus_lines_are_refused_or_other_documents() -> None:
    """Each line of the corpus, damaged in a hundred ways, is refused or is other JSON."""
    draw, refused, kept = random.Random(20260616), 0, 0
    for param in corpus("valid", "odd", "legacy"):
        line = param.values[0]["line"].encode()
        for _ in range(100):
            if decode_or_refuse(damaged(line, draw)) is None:
                refused += 1
            else:
                kept += 1

    assert refused > 1000
    assert kept > 1000


def test_every_truncation_of_a_line_is_refused() -> None:
    """A line that ends early is no document."""
    for param in corpus("valid", "odd"):
        line = param.values[0]["line"].encode()
        for end in range(0, len(line), max(1, len(line) // 60)):
            with pytest.raises(FormatError):
                read_line(line[:end])


# ======================================================================================================================
# float32
# ======================================================================================================================


def boundary_bits() -> list[int]:
    """Bit patterns around every power of two, the subnormals' ends and every power of ten."""
    found = {0x15AE43FD, 1, 2, 3, 0x7FFFFF, 0x800000, 0x7F7FFFFF}
    for exponent in range(255):
        found |= {(exponent << 23) + delta for delta in (-2, -1, 0, 1, 2, 0x400000)}
    for power in range(-45, 39):
        found |= {reference.nearest_float32_bits(f"1e{power}") + delta for delta in (-1, 0, 1)}
    found = {bits for bits in found if 0 <= bits < 0x7F800000}
    return sorted(found | {bits | 0x80000000 for bits in found})


def sweep(count: int) -> Any:
    """Finite bit patterns: all boundaries, all small subnormals, and random ones up to `count`."""
    generator = numpy.random.default_rng(20260616)
    bits = numpy.concatenate(
        [
            numpy.array(boundary_bits(), dtype="u4"),
            numpy.arange(20_000, dtype="u4"),
            generator.integers(0, 0x00800000, 30_000).astype("u4"),
            generator.integers(0, 2**32, count).astype("u4"),
        ]
    )
    return bits[(bits & 0x7F800000) != 0x7F800000][:count]


def test_200_000_floats_come_back_bit_for_bit() -> None:
    """Every finite float32 tried, boundaries and subnormals among them, survives its decimal text."""
    raw = sweep(200_000).astype(">u4").tobytes()
    vector = b'{"$binary":"' + base64.b64encode(raw) + b'"}'

    array, is_binary = encode_vector(vector)

    assert is_binary
    assert decode_vector(array) == vector


def test_each_float_has_its_shortest_text() -> None:
    """No text of fewer digits is the same float32, and of the shortest it is numpy's: the nearest."""
    bits = sweep(200_000)
    floats = bits.view("f4")
    array, _ = encode_vector(binary_text([int(b) for b in bits]).encode())
    texts_found = array[1:-1].decode().split(",")

    assert len(texts_found) == len(bits) == 200_000
    for text, number, pattern in zip(texts_found, floats, bits, strict=True):
        shortest = numpy.format_float_scientific(number, unique=True, trim="-")
        assert Decimal(text) == Decimal(shortest), text
        assert text.startswith("-") == bool(pattern >> 31)


def test_the_reference_reads_each_float_the_same() -> None:
    """Rounded once, by exact fractions, each printed text is the very float32."""
    bits = [int(b) for b in sweep(200_000)[::13]] + [0x15AE43FD]
    array, _ = encode_vector(binary_text(bits).encode())

    found = [reference.nearest_float32_bits(text) for text in array[1:-1].decode().split(",")]

    assert found == bits


@SMALL
@given(st.lists(st.one_of(numbers, integers), max_size=6))
def test_arrays_keep_their_digits(elements: list[str]) -> None:
    """A vector that is an array is never touched, whatever its numbers look like."""
    array = f"[{','.join(elements)}]".encode()

    assert encode_vector(array) == (array, False)


def test_the_text_that_rounds_twice() -> None:
    """7.038531e-26 through a double would be the float32 next to it."""
    bits = reference.nearest_float32_bits("7.038531e-26")

    assert struct.pack(">f", float("7.038531e-26")) != struct.pack(">I", bits)
    assert decode_vector(b"[7.038531e-26]") == binary_text([bits]).encode()
    assert Decimal(encode_vector(binary_text([bits]).encode())[0][1:-1].decode()) == Decimal("7.038531e-26")


# ======================================================================================================================
# Data files
# ======================================================================================================================


def good_documents(count: int, seed: int = 1) -> list[bytes]:
    """Documents of every sort, made of the corpus's."""
    cases = [param.values[0] for param in corpus("valid", "odd")]
    draw = random.Random(seed)
    picked = [draw.choice(cases)["document"].encode() for _ in range(count)]
    has_own_names = re.compile(rb'"\$(vector|vectorize|lexical)":')
    return [
        text if has_own_names.search(text) else b'{"_id":%d,"n":%s}' % item
        for item in enumerate(picked)
        for text in item[1:]
    ]


def write(path: Path, documents: list[bytes], *, compressed: bool, step: int = 7) -> DataStats:
    """A data file with these documents, written in pages."""
    writer = DataFileWriter(path, compressed=compressed)
    for start in range(0, len(documents), step):
        writer.write(documents[start : start + step])
    written = writer.close()
    found = check(path.read_bytes(), compressed=compressed)
    assert written == found
    return found


def check(content: bytes, *, compressed: bool = True) -> DataStats:
    """What a data file of these bytes holds."""
    return DataReader(io.BytesIO(content), compressed=compressed).check()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_reads_back_as_it_was_written(tmp_path: Path, compressed: bool) -> None:
    """What the writer counted is what a reader counts, and both are what independent sums say."""
    texts, path = good_documents(400), tmp_path / "data"

    written = write(path, texts, compressed=compressed)
    content = path.read_bytes()
    lines = (gzip.decompress(content) if compressed else content).split(b"\n")

    assert check(content, compressed=compressed) == written
    assert lines.pop() == b""
    assert [decode_document(line) for line in lines] == texts
    assert written.document_count == len(texts) == len(lines)
    assert written.content_digest == sum(int(hashlib.sha256(line).hexdigest(), 16) for line in lines) % 2**256
    assert written.data_sha256 == hashlib.sha256(content).hexdigest()
    assert written.data_size_bytes == len(content) == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = [json.loads(text) for text in texts]
    assert written.vector_count == sum(item.get("$vector") is not None for item in loaded) > 0
    assert written.vector_binary_count == sum(isinstance(item.get("$vector"), dict) for item in loaded) > 0
    assert written.vectorize_count == sum(bool((item.get("$vectorize") or "").strip()) for item in loaded) > 0


def test_the_content_digest_does_not_depend_on_the_order(tmp_path: Path) -> None:
    """The same documents in another order have the same digests, and one document less, other ones."""
    texts = good_documents(100)
    shuffled = random.Random(2).sample(texts, len(texts))

    one = write(tmp_path / "a", texts, compressed=True)
    other = write(tmp_path / "b", shuffled, compressed=False, step=3)
    less = write(tmp_path / "c", texts[1:], compressed=True)

    assert one.content_digest == other.content_digest
    assert one.data_sha256 != other.data_sha256
    assert one.content_digest != less.content_digest
    record = astra_backup.CollectionRecord("docs")
    assert len(one.facts(record)["content_digest"]) == 64
    assert astra_backup.DataStats(content_digest=5).facts(record)["content_digest"] == "0" * 63 + "5"


def test_an_empty_file_is_a_valid_backup(tmp_path: Path) -> None:
    """No document at all is zero of everything."""
    for compressed in (True, False):
        stats = write(tmp_path / "empty", [], compressed=compressed)

        assert check((tmp_path / "empty").read_bytes(), compressed=compressed) == stats
        assert (stats.document_count, stats.content_digest) == (0, 0)


def refused_or_different(content: bytes, good: DataStats, *, compressed: bool = True) -> None:
    """A damaged file raises FormatError, or what it holds is not what was written."""
    try:
        found = check(content, compressed=compressed)
    except FormatError:
        return
    assert found != good


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_file_does_not_pass(tmp_path: Path, compressed: bool) -> None:
    """A file that ends early is refused or differs, wherever it ends."""
    stats = write(tmp_path / "data", good_documents(60), compressed=compressed)
    content = (tmp_path / "data").read_bytes()

    for end in range(0, len(content), max(1, len(content) // 400)):
        refused_or_different(content[:end], stats, compressed=compressed)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_bit_does_not_pass(tmp_path: Path, compressed: bool) -> None:
    """A file with one bit changed is refused or differs, and never raises anything but FormatError."""
    stats = write(tmp_path / "data", good_documents(60), compressed=compressed)
    content = (tmp_path / "data").read_bytes()
    draw = random.Random(3)

    positions = [*range(min(24, len(content))), *range(len(content) - 9, len(content))]
    for at in positions + [draw.randrange(len(content)) for _ in range(500)]:
        flipped = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        refused_or_different(flipped, stats, compressed=compressed)


def test_concatenated_and_padded_files_do_not_pass(tmp_path: Path) -> None:
    """Two gzip files in one, or bytes behind the end, are refused or differ."""
    stats = write(tmp_path / "data", good_documents(20), compressed=True)
    content = (tmp_path / "data").read_bytes()

    assert check(content).document_count == stats.document_count
    for extra in (
        content,
        gzip.compress(b""),
        b"\x00",
        b"\x00" * 1000,
        b"x",
        b"\x1f\x8b",
        content[: len(content) // 2],
    ):
        refused_or_different(content + extra, stats)


def test_a_line_split_over_two_members_is_one_line() -> None:
    """The end of a gzip member is no end of a line."""
    content = gzip.compress(b'{"_id":1,"a":"x') + gzip.compress(b'y"}\n{"_id":2}\n')

    assert check(content).document_count == 2


def test_a_last_line_without_a_newline_counts() -> None:
    """A file that does not end in a newline holds its last line all the same."""
    assert check(b'{"_id":1}\n{"_id":2}', compressed=False).document_count == 2


@pytest.mark.parametrize(
    "content", [b'{"_id":1}\n\n{"_id":2}\n', b"\n", b'{"a":1}\n', b"[]\n", b"5\n", b'{"_id":1}{"_id":2}\n']
)
def test_a_line_that_is_no_document_is_named(content: bytes) -> None:
    """An empty line, a document without `_id` and what is no document are refused with the line's number."""
    with pytest.raises(FormatError, match=r"line [0-9]"):
        check(content, compressed=False)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_line_over_the_limit_is_refused_with_little_memory(monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    """A line longer than any document, with or without an end, is refused before it fills the memory."""
    monkeypatch.setattr(restore, "MAX_LINE_BYTES", 1_000_000)
    content = b'{"_id":"' + b"x" * 60_000_000
    packed = gzip.compress(content, 1) if compressed else content
    del content

    with Peak() as peak, pytest.raises(FormatError, match="more than 1000000 bytes"):
        check(packed, compressed=compressed)
    assert peak.bytes < 12_000_000


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("off", [-2, -1, 0, 1])
def test_a_line_may_end_anywhere_in_a_chunk(compressed: bool, off: int) -> None:
    """Lines that end just before, at and behind the border of what is read at a time are whole, the empty ones too."""
    first = b"x" * (astra_backup.READ_BYTES + off)
    lines = [first, b"", b"y", b"z" * astra_backup.READ_BYTES * 2, b"", b"last"]
    content = b"\n".join(lines)

    for end in (b"", b"\n"):
        stream = io.BytesIO(gzip.compress(content + end) if compressed else content + end)
        assert list(iter_lines(stream, compressed=compressed)) == lines


def test_several_gzip_members_are_one_file() -> None:
    """What `cat a.gz b.gz` made is read to its end, wherever a line is cut."""
    stream = io.BytesIO(gzip.compress(b"one\ntw") + gzip.compress(b"") + gzip.compress(b"o\nthree\n"))

    assert list(iter_lines(stream, compressed=True)) == [b"one", b"two", b"three"]


def test_a_line_just_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for a line whose end is read in the same chunk, too."""
    monkeypatch.setattr(restore, "MAX_LINE_BYTES", 1_000)

    with pytest.raises(FormatError, match="more than 1000 bytes"):
        check(b'{"_id":"' + b"x" * 2_000 + b'"}\n', compressed=False)


def test_a_gzip_bomb_is_read_with_little_memory() -> None:
    """A small file that unpacks to 200 MB of documents is read in constant memory."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as out:
        block = (b'{"_id":"' + b"x" * 99_980 + b'"}\n') * 20
        for _ in range(100):
            out.write(block)
    packed.seek(0)

    with Peak() as peak:
        stats = DataReader(packed, compressed=True).check()
    assert stats.document_count == 2000
    assert peak.bytes < 12_000_000


class Peak:
    """The greatest amount of Python memory while a block runs."""

    bytes = 0

    def __enter__(self) -> Peak:
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def test_a_page_of_large_documents_is_written_with_little_memory(tmp_path: Path) -> None:
    """A page of 40 MB is encoded and compressed in pieces: what it takes beside the page is a quarter of it."""
    page = [json.dumps({"_id": number, "text": "x" * 1_000_000}).encode() for number in range(40)]
    writer = DataFileWriter(tmp_path / "data", compressed=True)

    with Peak() as peak:
        writer.write(page)
        stats = writer.close()
    assert stats.document_count == 40
    assert peak.bytes < 12_000_000


def test_a_lossy_document_stops_the_file(tmp_path: Path) -> None:
    """A page with a document that cannot be written raises instead of leaving it out."""
    writer = DataFileWriter(tmp_path / "data", compressed=True)

    with pytest.raises(LossyError):
        writer.write([b'{"_id":1}', b'{"_id":2,"a":{"$new":1}}', b'{"_id":3}'])
    writer.abandon()


def test_a_file_without_the_end_of_its_compressed_text_is_refused(tmp_path: Path) -> None:
    """All lines are in it, and what closes the compressed stream is not: it is no whole data file."""
    writer = DataFileWriter(tmp_path / "data", compressed=True)
    writer.write([b'{"_id":1}'])
    compressor = writer._compressor

    class Cut:
        def flush(self) -> bytes:
            return compressor.flush()[:-4]

    writer._compressor = Cut()
    with pytest.raises(FormatError, match="do not decompress to their end"):
        writer.close()


@pytest.mark.parametrize("depth", [400, 700])
def test_a_document_that_is_nested_too_deep_is_refused(depth: int) -> None:
    """Whether it is too deep for the reader of JSON or for what wraps and unwraps values: never a bug."""
    text = b'{"_id":1,"a":%b{"$date":1}%b}' % (b"[" * depth, b"]" * depth)
    with contextlib.suppress(FormatError):  # Python's stack decides
        line, _ = encode_document(text)
        assert decode_document(line) == text
    with pytest.raises(FormatError):
        encode_document(text.replace(b"[", b"[" * 5).replace(b"]", b"]" * 5))


def test_a_primary_key_may_be_the_name_of_its_column() -> None:
    """As createTable takes it; a server may list it so."""
    definition = msgspec.Raw(b'{"columns":{"id":{"type":"text"}},"primaryKey":"id"}')
    assert astra_backup.TableShape.read("t", definition).keys == ("id",)


def test_a_row_with_a_column_twice_is_refused() -> None:
    """Of two values of a column one would be lost."""
    with pytest.raises(LossyError):
        astra_backup.encode_row(b'{"a":1,"a":2}')


# ======================================================================================================================
# Manifest and names
# ======================================================================================================================

DEFINITION = b"""{"vector": {"dimension": 1536, "metric": "cosine", "service": {"provider": "p", "parameters":
    {"x": 1.10, "y": 12345678901234567890.5, "z": 1E+300}}}, "futureOption": {"\\u0061": [1.0, -0.0, 1e5]},
    "indexing": {"deny": ["*"]}, "lexical": {"enabled": false}, "rerank": null}"""


def manifest_text(**changes: Any) -> bytes:
    """A manifest as another tool of the same format could have written it."""
    fields = {"backup_format_version": "1.0", "collections": [], **changes}
    return json.dumps(fields).encode()


def test_definitions_travel_untouched() -> None:
    """A definition's unknown fields, order of keys and digits survive reading and writing a manifest."""
    text = b'{"backup_format_version":"1.0","collections":[{"name":"c","definition":' + DEFINITION + b"}]}"

    once = Manifest.decode(text).encode()
    twice = Manifest.decode(once).encode()

    for result in (once, twice):
        start = reference.parse(result).get("collections")[0].get("definition")  # type: ignore[union-attr, index]
        assert start == reference.parse(DEFINITION)
    assert once == twice
    assert b"\\u0061" in once


def test_definitions_may_hold_any_number() -> None:
    """A definition with a number beyond a 64-bit float is read like any other."""
    Manifest.decode(b'{"backup_format_version":"1.0","collections":[{"name":"c","definition":{"future":1E+400}}]}')


@pytest.mark.parametrize("version", ["1", "1.0", "1.1", "1.999", "1.0.3", "1.0-rc1"])
def test_minor_versions_are_read(version: str) -> None:
    """A manifest of the same major version is read, whatever its minor one."""
    assert Manifest.decode(manifest_text(backup_format_version=version)).backup_format_version == version


@pytest.mark.parametrize(
    "version", ["2.0", "0.9", "10.0", "11", "", "v1.0", " 1.0", "1x.0", ".1", "one", "01.0", "-1.0"]
)
def test_other_major_versions_are_refused(version: str) -> None:
    """A manifest of another or no version is refused, and the error names it."""
    with pytest.raises(FormatError, match="version"):
        Manifest.decode(manifest_text(backup_format_version=version))


def test_unknown_manifest_fields_are_ignored() -> None:
    """Fields of a later minor version do no harm, at any level."""
    text = manifest_text(
        future={"a": 1},
        source={"keyspace": "k", "region": "x"},
        totals={"documents": 3, "bytes": 9},
        collections=[{"name": "c", "definition": {}, "shards": 4}],
    )

    manifest = Manifest.decode(text)

    assert (manifest.source.keyspace, manifest.totals.documents, manifest.collections[0].name) == ("k", 3, "c")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"backup_format_version":1.0}',
        b'{"backup_format_version":null}',
        b'{"backup_format_version":"1.0"',
        b'{"backup_format_version":"1.0"}x',
        b'{"backup_format_version":"1.0","collections":{}}',
        b'{"backup_format_version":"1.0","collections":[{}]}',
        b'{"backup_format_version":"1.0","collections":[{"name":1}]}',
        b'{"backup_format_version":"1.0","collections":[{"name":"c","definition":5}]}',
        b'{"backup_format_version":"1.0","collections":[{"name":"c","definition":[]}]}',
        b'{"backup_format_version":"1.0","collections":[{"name":"c","document_count":"5"}]}',
        b'{"backup_format_version":"1.0","collections":[{"name":"c","data_file":5}]}',
        b'{"backup_format_version":"1.0","x":"\xff"}',
        b'{"backup_format_version":"1.0","x":' + b"[" * 100_000,
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    """A broken manifest raises FormatError and nothing else."""
    with pytest.raises(FormatError):
        Manifest.decode(text)


def test_damaged_manifests_are_refused_or_other_manifests() -> None:
    """Whatever happens to a manifest, reading it raises FormatError or gives a manifest."""
    text = b'{"backup_format_version":"1.0","collections":[{"name":"c","definition":' + DEFINITION + b"}]}"
    good, draw = Manifest.decode(text).encode(), random.Random(4)

    for _ in range(3000):
        try:
            assert isinstance(Manifest.decode(damaged(good, draw)), Manifest)
        except FormatError:
            continue


@pytest.mark.parametrize("name", ["20260616_085246", "20991231_235959"])
def test_snapshot_names_are_recognised(name: str) -> None:
    """A snapshot's name says when it started and whether it is complete."""
    assert parse_snapshot_name(name) == (name, False)
    assert parse_snapshot_name(name + ".INCOMPLETE") == (name, True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "20260616_085246\n",
        "\n20260616_085246",
        " 20260616_085246",
        "20260616_085246 ",
        "20260616-085246",
        "20260616085246",
        "2026061_085246",
        "202606160_085246",
        "20260616_0852466",
        "20260616_085246.incomplete",
        "20260616_085246.INCOMPLETE.INCOMPLETE",
        "20260616_085246.INCOMPLETE\n",
        "20260616_085246xINCOMPLETE",
        "20260616_085246.zip",
        ".20260616_085246.inprogress",
        ".20260616_085246",
        "x20260616_085246",
        "../20260616_085246",
        "20260616_085246/",
        "20260616_085246 (1)",
        pytest.param("２０２６0616_085246"),
        pytest.param("20260616_08524\u0666"),
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    """Anything but exactly a snapshot's name is none."""
    assert parse_snapshot_name(name) is None


# ======================================================================================================================
# What restore does with documents
# ======================================================================================================================


@SMALL
@given(st.lists(st.integers(2, 300), max_size=350), st.integers(50, 2000))
def test_batches_stay_within_both_limits(sizes: list[int], limit: int) -> None:
    """Batches keep the order, hold at most 100 documents, and their joined text at most the limit."""
    documents_in = [b"x" * size for size in sizes]
    before = restore.MAX_BATCH_BYTES
    restore.MAX_BATCH_BYTES = limit
    try:
        batches = list(restore.make_batches(iter(documents_in)))
    finally:
        restore.MAX_BATCH_BYTES = before

    assert [text for batch in batches for text in batch] == documents_in
    for batch in batches:
        assert 1 <= len(batch) <= 100
        assert len(batch) == 1 or len(b",".join(batch)) <= limit
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == 100 or len(b",".join([*batch, following[0]])) > limit


def test_batches_at_the_servers_limits() -> None:
    """101 documents are two batches, and a document of 4 MB goes alone."""
    assert [len(batch) for batch in restore.make_batches([b"{}"] * 201)] == [100, 100, 1]
    assert [len(batch) for batch in restore.make_batches([b"{}", b"x" * 4_000_000, b"{}"])] == [1, 1, 1]
    assert list(restore.make_batches([])) == []


SAME = [
    ("1E+2", "100.0"),
    ("1E+2", "100"),
    ("0", "-0.0"),
    ("0", "0E+400"),
    ("1.10", "1.1"),
    ("1e-7", "0.0000001"),
    ("12345678901234567890.50", "12345678901234567890.5"),
    ("1E+400", "10E+399"),
    ("-1.5", "-15E-1"),
    (r'"\u0041\/"', '"A/"'),
    ('{"a":1,"b":{"c":2,"d":3}}', '{"b":{"d":3,"c":2},"a":1}'),
    ('[{"$date":1}]', '[{"$date":1.0}]'),
]
DIFFERENT = [
    ("1E+2", "100.5"),
    ('"1"', "1"),
    ("1", "true"),
    ("0", "false"),
    ("0", "null"),
    ("1", "-1"),
    ("1", "10"),
    ("0", "1E-400"),
    ("1E+400", "1E+401"),
    ("12345678901234567890.5", "12345678901234567890.6"),
    ("9007199254740992", "9007199254740993"),
    ("[]", "{}"),
    ("[1,2]", "[2,1]"),
    ("[1]", "[[1]]"),
    ('{"a":null}', "{}"),
    ('""', "null"),
    ('"a"', '"A"'),
    ('"e\u0301"', '"\u00e9"'),
    ('{"$date":1}', '{"$date":2}'),
    ('{"$uuid":"a"}', '"a"'),
    ('{"a":1}', '["a",1]'),
    ('"[1]"', "[1]"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_value_has_the_same_digest(one: str, other: str) -> None:
    """Numbers are compared by value and keys in any order."""
    first, second = (f'{{"_id":1,"v":{value}}}'.encode() for value in (one, other))

    assert restore.value_digest(first) == restore.value_digest(second)
    assert restore.same_document(first, second)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_value_has_another_digest(one: str, other: str) -> None:
    """Another number, type, order of elements or text is another document."""
    first, second = (f'{{"_id":1,"v":{value}}}'.encode() for value in (one, other))

    assert restore.value_digest(first) != restore.value_digest(second)
    assert not restore.same_document(first, second)


@pytest.mark.parametrize(("one", "other"), [("1", '["number","","1","0"]'), ("-1.5E+9", '["number","-","15","8"]')])
def test_no_list_is_taken_for_a_number(one: str, other: str) -> None:
    """A list of texts is never the same document as a number."""
    assert not restore.same_document(f'{{"_id":1,"v":{one}}}'.encode(), f'{{"_id":1,"v":{other}}}'.encode())


def test_any_exponent_can_be_compared() -> None:
    """A number that can be backed up can be compared."""
    restore.value_digest(b'{"_id":1,"v":1E+9999999999999999999}')


def test_vector_forms_differ() -> None:
    """A vector as an array and the same one as binary are different documents."""
    array, binary = b'{"_id":1,"$vector":[0.5]}', b'{"_id":1,"$vector":{"$binary":"PwAAAA=="}}'

    assert restore.value_digest(array) != restore.value_digest(binary)
    assert not restore.same_document(array, binary)


@SMALL
@given(documents(), st.randoms(use_true_random=False))
def test_the_digest_ignores_the_order_of_keys_and_nothing_else(document: bytes, draw: random.Random) -> None:
    """Shuffled members are the same document; one more member is another."""
    pairs = list(reference.parse(document).pairs)  # type: ignore[union-attr]
    draw.shuffle(pairs)
    shuffled = to_text(Members(tuple(pairs))).encode()

    assert restore.value_digest(shuffled) == restore.value_digest(document)
    assert restore.value_digest(document[:-1] + b',"one more":0}') != restore.value_digest(document)


def to_text(value: reference.Value) -> str:
    """Tagged values as JSON text again."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Members):
        return "{" + ",".join(f"{json.dumps(name)}:{to_text(member)}" for name, member in value.pairs) + "}"
    return "[" + ",".join(map(to_text, value)) + "]" if isinstance(value, list) else json.dumps(value)


def id_key(value: str) -> bytes:
    """The key of a document with this `_id`."""
    return astra_backup.document_key(f'{{"_id":{value},"a":{{"_id":0}}}}'.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"$uuid":"6f1ed0a1-1f0d-4b3b-9d9f-5b3c1d2e3f40"}', '"6f1ed0a1-1f0d-4b3b-9d9f-5b3c1d2e3f40"'),
        ('{"$uuid":"6F1ED0A1-1F0D-4B3B-9D9F-5B3C1D2E3F40"}', '"6f1ed0a1-1f0d-4b3b-9d9f-5b3c1d2e3f40"'),
        ('{"$objectId":"65F0A1B2C3D4E5F60718293A"}', '"65f0a1b2c3d4e5f60718293a"'),
    ],
)
def test_ids_that_are_one_key(one: str, other: str) -> None:
    """A UUID and an ObjectId are the same key as their lower-case text."""
    assert id_key(one) == id_key(other)


def test_ids_that_are_different_keys() -> None:
    """Numbers of another spelling, types and texts of another case are other keys."""
    different = [
        "100",
        "1E+2",
        '"100"',
        '{"$date":100}',
        "true",
        '"true"',
        "null",
        '"null"',
        '"a"',
        '"A"',
        "-100",
        "101",
    ]

    assert len({id_key(value) for value in different}) == len(different)


def test_what_a_server_turns_on_is_explicit() -> None:
    """`lexical` and `rerank` are off unless the definition says otherwise, and nothing else is lost."""
    wanted = {"vector": {"dimension": 3, "service": {"provider": "p"}}, "future": [1], "lexical": {"enabled": True}}

    explicit = restore.explicit_options(wanted)

    assert explicit["lexical"] == {"enabled": True}
    assert explicit["rerank"] == {"enabled": False}
    assert explicit["future"] == [1]
    assert explicit["vector"]["service"] == {"provider": "p"}
    assert restore.explicit_options({}) == {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
    assert restore.explicit_options(explicit) == explicit
    assert "rerank" not in wanted


def test_definition_differences_name_the_field() -> None:
    """Each differing field is named with its path, and equal definitions have none."""
    wanted = {"vector": {"dimension": 3, "metric": "cosine"}, "indexing": {"deny": ["*"]}}

    assert restore.definition_differences(wanted, json.loads(json.dumps(wanted))) == []
    for found, path in [
        ({**wanted, "vector": {"dimension": 4, "metric": "cosine"}}, "vector.dimension"),
        ({**wanted, "vector": {"dimension": 3}}, "vector.metric"),
        ({**wanted, "indexing": {"deny": ["a"]}}, "indexing.deny"),
        ({**wanted, "indexing": {"allow": ["*"]}}, "indexing.allow"),
        ({**wanted, "defaultId": {"type": "uuid"}}, "defaultId"),
        ({"indexing": wanted["indexing"]}, "vector"),
    ]:
        differences = restore.definition_differences(wanted, found)
        assert any(path in difference for difference in differences)
        assert differences != []


@pytest.mark.parametrize(
    "line",
    [
        b'{"_id": "x", "a": [1, 2]}',
        b'{"_id": "x", "$vector": [0.1, 0.2]}',
        b'{"_id": {"$backupType": "uuid", "value": "6f1ed0a1-1f0d-4b3b-9d9f-5b3c1d2e3f40"}, "$vector": [0.1, 0.2]}',
        b'{"_id": "x", "at": {"$backupType": "datetime", "value": "2004-01-10T00:00:00"}, "$vector": [0.1, 0.2]}',
    ],
)
def test_an_older_script_s_spaced_line_compares_with_the_server_s_text(line: bytes) -> None:
    """A document from a line as `json.dumps` writes it by default can be compared with the server's compact one."""
    text = read_line(line)
    compact = compact_json(text)

    assert astra_backup.document_key(text) == astra_backup.document_key(compact)
    assert restore.same_document(text, compact)
    assert restore.value_digest(text) == restore.value_digest(compact)
    restore.text_digest(text)


def test_batches_and_lines_never_meet_python_floats() -> None:
    """A document that was encoded, written, read and grouped is still the server's text."""
    texts = good_documents(150, seed=9)
    lines = [encode_document(text)[0] for text in texts]

    assert [text for batch in restore.make_batches(map(decode_document, lines)) for text in batch] == texts


@pytest.mark.parametrize(
    "array",
    [
        "[]",
        "[1]",
        "[0.1,-2e-5,3E-7,1e-45,-0]",
        "[ 1.5 , 2 ]",
        "[3.4028235e38]",
        "[3.4028236e38]",
        "[1e39]",
        "[-1E+39]",
        "[1e400]",
        f"[{'9' * 24}.5]",
        f"[{'9' * 38}]",
        f"[{'9' * 39}]",
        f"[0.{'1' * 60}]",
        "[[1,2]]",
        "[1,[2]]",
        "[null]",
        "[true]",
        '["1"]',
        "[{}]",
        '{"a":1}',
        '"[1]"',
        "7",
    ],
)
def test_what_verifying_lets_through_can_be_decoded(array: str) -> None:
    """The quick check of a binary vector and its decoding agree on every text."""
    line = f'{{"_id":1,"$vector":{array},"$backupVector":"binary"}}'.encode()

    def is_refused(call: Callable[[], object]) -> bool:
        try:
            call()
        except FormatError:
            return True
        return False

    assert is_refused(lambda: check(line, compressed=False)) == is_refused(lambda: decode_document(line))


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 38, 39, 40])
def test_a_long_number_is_seen_wherever_it_stands(length: int) -> None:
    """A number beyond float32 is refused when it is verified, at each place in a vector of ordinary ones."""
    for place in range(40):
        array = b"[%b%b,0.25]" % (b"0.1234567," * (place // 10) + b"1," * (place % 10), b"9" * length)
        line = b'{"_id":1,"$vector":%b,"$backupVector":"binary"}' % array
        with pytest.raises(FormatError, match="beyond float32") if length > 38 else contextlib.nullcontext():
            check(line, compressed=False)


def test_a_tiny_number_beside_a_minus_zero_costs_no_time() -> None:
    """The exact value of 1e-7333… has more digits than any memory; that it is zero, and its sign, need none of them."""
    array = f"[-0,1e-7{'3' * 45},-1e-7{'3' * 45},0.5,0]".encode()
    started = time.monotonic()
    found = numpy.frombuffer(base64.b64decode(json.loads(decode_vector(array))["$binary"]), ">f4")
    assert time.monotonic() - started < 5
    assert found.tolist() == [0, 0, 0, 0.5, 0]
    assert numpy.signbit(found).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    "document",
    [
        '{"_id":1,"a":{"$date":{"$backupe":1}}}',
        '{"_id":1,"$vector":{"$binary":"Pw==","b":{"$backupType":"uuid"}}}',
        '{"_id":1,"a":[{"$uuid":{"x":1,"$backupVector":"binary"}}]}',
    ],
)
def test_what_could_not_be_read_again_is_not_written(document: str) -> None:
    """A name of ours inside a value that goes as a whole would be refused by every reader: the collection fails."""
    with pytest.raises(LossyError, match="backup"):
        encode_document(document.encode())


@pytest.mark.parametrize(
    "vector",
    [
        '[{"$backupType":"x","value":1}]',
        '[0.5,{"$date":1}]',
        '[{"\\u0024new":1}]',
        '[[{"a":{"$backupType":"datetime"}}]]',
    ],
)
def test_a_vector_of_something_else_than_numbers_is_refused(vector: str) -> None:
    """A `$`-name inside the array of a vector is unknown there, as everywhere."""
    with pytest.raises(LossyError):
        encode_document(f'{{"_id":1,"$vector":{vector}}}'.encode())


def test_a_text_that_looks_like_a_name_of_ours_is_kept() -> None:
    """Only a name counts: the same characters in a string come back."""
    document = rb'{"_id":1,"a":{"$date":"{\"$backupe\":1}"}}'
    assert decode_document(encode_document(document)[0]) == document


@pytest.mark.parametrize("spaces", [0, 1, 63, 64, 65, 5000])
def test_white_space_hides_no_wrapped_value(spaces: int) -> None:
    """However much of it there is before a name of ours: older scripts and strangers may format as they like."""
    gap = " " * spaces
    line = f'{{"_id":1,"a":{{{gap}"$backupType"{gap}:{gap}"set",{gap}"value":[1]}}}}'.encode()
    assert json.loads(decode_document(line)) == {"_id": 1, "a": [1]}
    unknown = f'{{"_id":1,"a":{{{gap}"$backupType":"new","value":[1]}}}}'.encode()
    with pytest.raises(FormatError):
        decode_document(unknown)


FIRST_DECODERS = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
import astra_backup, restore
sys.setswitchinterval(1e-6)
threading.excepthook = lambda _: os._exit(1)

def decode():
    gate.wait()
    astra_backup.Manifest.decode(b'{"backup_format_version":"1.0","collections":[{"name":"a"}]}')
    astra_backup.decode_reply(b'{"status":{"documentResponses":[]}}')
    restore.reply_errors(None, "docs", astra_backup.Reply(status=b'{"documentResponses":[{"status":"OK"}]}'), 1)

for _ in range(40):
    if not (child := os.fork()):
        gate = threading.Barrier(8)
        threads = [threading.Thread(target=decode) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the process died"
"""


def test_threads_may_be_the_first_to_decode() -> None:
    """Several threads that are the first ones of a process to read a manifest or a reply do not crash it."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_DECODERS, str(Path(__file__).parent.parent)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
