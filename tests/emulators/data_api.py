"""A stand-in for the DataStax Data API server, for tests and benchmarks.

    python -m tests.emulators.data_api --port 8181 --load tests/data/catalog

What it does. It keeps collections in memory and answers the commands a backup and a restore need, on `/v1`
and on `/api/json/v1`; faults can be scripted (see ACTIONS). Documents are normalised as the server does
(`_id` first, numbers as BigDecimal prints them, text as Jackson writes it) and scanned in the order of
Cassandra's Murmur3 tokens, so pages and page states are those of the real server to the byte. Everything in
`tests/data/transcripts.json` was recorded from the real server (commit ada41bd81, over Cassandra 5.0) and
is replayed against this program by `tests/test_data_api_emulator.py`; so are the scans and the guessed page
states in `tests/data/page_states.json.gz`, by `tests/test_page_states.py`. Servers whose page states are
otherwise can be had too (see PAGE_STATES). `createCollection` makes its indexes one by one, in `create_s`
seconds, and stops when its client has gone; the same command again makes what is missing.

What it does not do:

* updateOne, updateMany, findOneAndUpdate, findOneAndDelete, findAndRerank on collections: a loud
  EMULATOR_NOT_IMPLEMENTED error. The same for filters on anything but `_id` and ranges of numbers, for
  `$hybrid`, for sorting by `$lexical` and for `skip`. Tables have a module of their own, `tables.py`.
* Dotted paths in projections: only top-level names. Sorting by a field compares values in memory.
* The size of `$lexical` content, the limit on indexes, consistency, time to live.
* Cassandra's refusal of vectors it cannot index (zero vectors under cosine, NaN): they are stored.
* Embedding: `--vectorize` computes a vector from a hash of the text. It resembles no model.

What it guesses, because nobody recorded it: the wording of errors that are not in the transcripts, and some
of their codes; 401 for a wrong token; 404, 405 and 415 (empty bodies); pages of `_id $in` (in token order,
page size as in a scan); lone surrogates (stored as `?`); a service without a dimension (filled in for
well-known models); what Astra reports for `lexical` and `rerank`; the names of indexes; and
`estimatedDocumentCount`, which counts what `load` brought (the server says 0 for fresh documents). Page
states of a collection made anew are refused by means of a generation number that stands where Cassandra has
a 0; the first collection of a name has generation 0.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import gzip
import hashlib
import json
import math
import operator
import os
import random
import re
import select
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
import uuid
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation
from email.utils import formatdate
from enum import Enum
from functools import partial
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

if TYPE_CHECKING:
    from tests.emulators import tables as table_api

# ----------------------------------------------------------------------------------------------------- limits

MAX_BODY_BYTES: Final = 20 * 1024 * 1024
MAX_DEPTH: Final = 16
MAX_DOCUMENT_CHARS: Final = 4_000_000
MAX_NUMBER_CHARS: Final = 100
MAX_INDEXED_STRING_BYTES: Final = 8_000
MAX_INDEXED_ARRAY: Final = 1_000
MAX_FIELDS_PER_OBJECT: Final = 1_000
MAX_INDEXED_FIELDS: Final = 2_000
MAX_PATH_CHARS: Final = 1_000
MAX_INSERTED_DOCUMENTS: Final = 100
MAX_IN_VALUES: Final = 100
MAX_COUNT: Final = 1_000
MAX_SORTED: Final = 50
MAX_DIMENSION: Final = 4_096
MAX_NEAREST: Final = 1_000

SYSTEM_KEYSPACES: Final = (
    "system_auth",
    "system_schema",
    "system_distributed",
    "system",
    "system_traces",
    "system_views",
    "system_virtual_schema",
)
JSON_TYPE: Final = "application/json;charset=UTF-8"
VECTOR, VECTORIZE, LEXICAL = "$vector", "$vectorize", "$lexical"
UNPROJECTED: Final = (VECTOR, VECTORIZE, LEXICAL)

Json = Any

# ------------------------------------------------------------------------------------ JSON text, like Jackson


class Number(str):
    """The digits of a JSON number as they were written."""

    __slots__ = ()


class Raw(str):
    """Finished JSON text."""

    __slots__ = ()


class DuplicateField(ValueError):
    """An object names the same field twice."""


class NumberTooLong(ValueError):
    """A number has more characters than the server reads; holds how many."""


TO_ESCAPE = re.compile("[\ud800-\udfff\U00010000-\U0010ffff]")
ESCAPES = re.compile(r"\\(?:u00[01][0-9a-f]|.)")
SAME_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
MANY_DIGITS = b"0" * (MAX_NUMBER_CHARS // 3 + 1)  # a number too long has them in one of its three parts
MAYBE_ODD = ("e", "E", "0,", "0.000000")
EXACT = Context(prec=2 * MAX_NUMBER_CHARS, Emax=MAX_EMAX, Emin=MIN_EMIN)


def as_object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateField(next(name for at, name in enumerate(names) if name in names[:at]))
    return made


def as_short_number(text: str) -> Number:
    length = len(re.sub("[-+.eE]", "", text))
    if length > MAX_NUMBER_CHARS:
        raise NumberTooLong(length)
    return Number(text)


def refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"Non-standard token '{text}': enable `JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS` to allow")


QUICK_PARSER = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=refuse_constant, object_pairs_hook=as_object
)
WARY_PARSER = json.JSONDecoder(
    parse_float=as_short_number,
    parse_int=as_short_number,
    parse_constant=refuse_constant,
    object_pairs_hook=as_object,
)


def parse(body: bytes) -> Json:
    """Read JSON, keeping the digits of every number."""
    parser = WARY_PARSER if MANY_DIGITS in body.translate(SAME_DIGITS) else QUICK_PARSER
    return parser.decode(body.decode("utf-8"))


def canonical_number(text: str) -> str:
    """The number as the server stores it: integers to the digit, others as a stripped `BigDecimal`.

    >>> [canonical_number(n) for n in ("1.0", "-0.0", "100.0", "1500.0", "1e400")]
    ['1', '0', '1E+2', '1.5E+3', '1E+400']
    """
    if text.isdigit() or text[1:].isdigit():
        return "0" if text == "-0" else text
    if text[-1] != "0" and "e" not in text and "E" not in text and "0.000000" not in text:
        return text
    stripped = Decimal(text).normalize(EXACT)
    return str(stripped) if stripped else "0"


def escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x10000:
        return "?"
    return f"\\uD{0x800 + ((code - 0x10000) >> 10):X}\\uD{0xC00 + (code & 0x3FF):X}"


def quote(text: str) -> str:
    quoted = encode_basestring(text)
    if "\\u00" in quoted:
        quoted = ESCAPES.sub(lambda match: match.group()[:2] + match.group()[2:].upper(), quoted)
    return quoted if quoted.isascii() else TO_ESCAPE.sub(escape, quoted)


def dump_list(values: list[Json]) -> str:
    if set(map(type, values)) == {Number}:
        joined = ",".join([*values, ""])
        if not any(sign in joined for sign in MAYBE_ODD):
            return f"[{joined[:-1]}]"
    return f"[{','.join(map(dump, values))}]"


def dump_object(value: dict[str, Json]) -> str:
    return "{" + ",".join([f"{quote(name)}:{dump(item)}" for name, item in value.items()]) + "}"


DUMPERS: dict[type, Callable[[Any], str]] = {
    str: quote,
    Number: canonical_number,
    Raw: str,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
    int: str,
    float: json.dumps,
    list: dump_list,
    dict: dump_object,
}


def dump(value: Json) -> str:
    """Compact JSON, written as the server writes it."""
    return DUMPERS[type(value)](value)


def plain(value: Json) -> Json:
    """The same value with ordinary Python numbers."""
    return json.loads(dump(value))


# ----------------------------------------------------------------------------------------------------- errors

ERRORS: dict[str, tuple[str, str, str]] = {  # code -> family, scope, title
    "CANNOT_VECTORIZE": ("REQUEST", "SCHEMA", "Vectorize value not valid"),
    "COMMAND_FIELD_UNKNOWN": ("REQUEST", "", "Command field unknown"),
    "COMMAND_FIELD_VALUE_INVALID": ("REQUEST", "", "Command field value invalid"),
    "COMMAND_UNKNOWN": ("REQUEST", "", "Command is not recognized by Data API"),
    "CORRUPTED_COLLECTION_SCHEMA": ("SERVER", "SCHEMA", "Collection schema is corrupted"),
    "DOCUMENT_ALREADY_EXISTS": ("REQUEST", "DOCUMENT", "Document the given _id already exists"),
    "DOCUMENT_REPLACE_DIFFERENT_DOCID": (
        "REQUEST",
        "DOCUMENT",
        "Replace document and document _id do not match",
    ),
    "EMBEDDING_SERVICE_NOT_CONFIGURED": (
        "REQUEST",
        "SCHEMA",
        "Embedding service not configured for collection",
    ),
    "EMULATOR_NOT_IMPLEMENTED": ("SERVER", "EMULATOR", "The emulator does not know how to do this"),
    "EXISTING_COLLECTION_DIFFERENT_SETTINGS": (
        "REQUEST",
        "SCHEMA",
        "Collection already exists with different settings",
    ),
    "FILTER_INVALID_EXPRESSION": ("REQUEST", "FILTER", "Filter expression not valid"),
    "INVALID_CREATE_COLLECTION_FIELD": ("REQUEST", "", "Invalid field(s) for createCollection"),
    "INVALID_DATABASE_QUERY": ("SERVER", "DATABASE", "Invalid database query"),
    "INVALID_INDEXING_DEFINITION": ("REQUEST", "SCHEMA", "Indexing definition not valid"),
    "INVALID_USAGE_OF_VECTORIZE": ("REQUEST", "SCHEMA", "Invalid use of '$vector' and '$vectorize'"),
    "INVALID_VECTOR_LENGTH": ("REQUEST", "DOCUMENT", "Vector values in documents are not valid"),
    "LEXICAL_FEATURE_NOT_ENABLED": ("REQUEST", "SCHEMA", "Lexical search is not available on this database"),
    "LEXICAL_NOT_ENABLED_FOR_COLLECTION": (
        "REQUEST",
        "SCHEMA",
        "Lexical search is not enabled for the collection",
    ),
    "MISSING_AUTHENTICATION_TOKEN": ("REQUEST", "SECURITY", "Missing authorization token"),
    "REQUEST_NOT_JSON": ("REQUEST", "", "Request not valid JSON"),
    "REQUEST_STRUCTURE_MISMATCH": ("REQUEST", "", "Request structure not valid"),
    "RERANKING_FEATURE_NOT_ENABLED": ("REQUEST", "SCHEMA", "Reranking is not available on this database"),
    "SHRED_BAD_BINARY_VECTOR_VALUE": ("REQUEST", "DOCUMENT", "Binary vector value not valid"),
    "SHRED_BAD_DOCID_TYPE": ("REQUEST", "DOCUMENT", "Document _id type not valid"),
    "SHRED_BAD_DOCID_VALUE": ("REQUEST", "DOCUMENT", "Document _id value not valid"),
    "SHRED_BAD_DOCUMENT_TYPE": ("REQUEST", "DOCUMENT", "Document type not valid"),
    "SHRED_BAD_EJSON_VALUE": ("REQUEST", "DOCUMENT", "Extended JSON value not valid"),
    "SHRED_BAD_FIELD_NAME": ("REQUEST", "DOCUMENT", "Document field name not valid"),
    "SHRED_BAD_VECTOR_SIZE": ("REQUEST", "DOCUMENT", "Vector value cannot be empty"),
    "SHRED_BAD_VECTOR_VALUE": ("REQUEST", "DOCUMENT", "Vector value not valid"),
    "SHRED_DOC_LIMIT_VIOLATION": ("REQUEST", "DOCUMENT", "Document size limitation violated"),
    "SORT_CLAUSE_PATH_UNINDEXED": ("REQUEST", "SORT", "Collection field used in sort clause not indexed"),
    "TOO_MANY_COLLECTIONS": ("REQUEST", "SCHEMA", "Too many collections"),
    "UNAUTHENTICATED_REQUEST": ("REQUEST", "SECURITY", "Invalid authorization token"),
    "UNEXPECTED_SERVER_ERROR": ("SERVER", "", "Unexpected server error"),
    "UNEXPECTED_DRIVER_ERROR": ("SERVER", "DATABASE", "Unexpected driver error"),
    "UNKNOWN_COLLECTION_OR_TABLE": (
        "REQUEST",
        "SCHEMA",
        "Collection or Table does not exist in the Keyspace",
    ),
    "UNKNOWN_KEYSPACE": ("REQUEST", "SCHEMA", "Keyspace does not exist in the Database"),
    "UNSUPPORTED_SCHEMA_NAME": ("REQUEST", "SCHEMA", "The used schema name is not supported"),
    "VECTORIZE_FEATURE_NOT_AVAILABLE": ("REQUEST", "SCHEMA", "Vectorize feature not available"),
    "VECTOR_SEARCH_NOT_SUPPORTED": ("REQUEST", "SCHEMA", "Vector search not enabled for collection"),
}


SERVER_CODES: Final = ("TIMEOUT_", "FAILED_", "UNAVAILABLE_", "UNEXPECTED_", "INTERNAL_", "CORRUPTED_")
"""How the codes begin for which the server takes the blame, where nothing else is known of them."""


class Refusal(Exception):
    """An error the server answers with; `fails_request` if no document of the request is looked at."""

    fails_request = False

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def as_json(self, document_id: Json = None) -> dict[str, Json]:
        made = error_object(self.code, self.message)
        if document_id is not None:
            made["documentIds"] = [document_id]
        return made


class RequestRefusal(Refusal):
    """A refusal of the whole request."""

    fails_request = True


def error_object(code: str, message: str, **overrides: Json) -> dict[str, Json]:
    at_fault = ("SERVER", "DATABASE", code) if code.startswith(SERVER_CODES) else ("REQUEST", "", code)
    family, scope, title = ERRORS.get(code, at_fault)
    made = {"id": str(uuid.uuid4()), "family": family, "scope": scope, "errorCode": code}
    return {**made, "title": title, "message": message, **overrides}


def invalid_field(name: str, value: Json, why: str) -> RequestRefusal:
    message = f"Command field '{name}' value {shorten(value)} not valid: {why}.\n\nResend command with valid value."
    return RequestRefusal("COMMAND_FIELD_VALUE_INVALID", message)


def shorten(value: Json) -> str:
    text = f"[{', '.join(map(dump, value))}]" if isinstance(value, list) else str(value)
    if len(text) <= 1000:
        return f'"{text}"'
    return f'"{text[:1000]}"...[TRUNCATED from {len(text)} to 1000 characters]'


def limit_violation(what: str) -> Refusal:
    return Refusal("SHRED_DOC_LIMIT_VIOLATION", f"Document size limitation violated: {what}.")


def not_implemented(what: str) -> RequestRefusal:
    return RequestRefusal("EMULATOR_NOT_IMPLEMENTED", f"tests/emulators/data_api.py does not emulate {what}.")


def bad_page_state(collection: Collection) -> RequestRefusal:
    return RequestRefusal(
        "UNEXPECTED_DRIVER_ERROR",
        "An unexpected server error occurred while using the driver with the database. \n\n"
        f"The command against the COLLECTION {collection.full_name} may be in an inconsistent state "
        "due to the error "
        "encountered. It may have either: \n* Failed to start communicating with the database.\n"
        "* Encountered an error when being processed by the database.\n"
        "* Completed successfully, but returned an unexpected response.\n\n"
        "Consult the the detailed error message below for more information:\n\nError Class: ProtocolError\n"
        "Error Message: Invalid value for the paging state\n\nReview the Error Message before "
        "retrying this request.",
    )


# ---------------------------------------------------------------------------------- keys, tokens, page states

MASK: Final = (1 << 64) - 1
C1, C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
ID_STRING, ID_NUMBER, ID_BOOLEAN, ID_NULL, ID_DATE = 1, 2, 3, 4, 5
UUID_TEXT = re.compile(r"[0-9a-fA-F]{1,16}(-[0-9a-fA-F]{1,16}){4}")
OBJECT_ID_TEXT = re.compile(r"[0-9a-fA-F]{24}")
UNLIMITED_ROWS: Final = 2**31 - 1


def mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def scramble(value: int, first: int, bits: int, second: int) -> int:
    value = value * first & MASK
    return (value << bits | value >> 64 - bits) * second & MASK


def murmur_token(key: bytes) -> int:
    """Cassandra's Murmur3Partitioner, with its signed bytes in the tail."""
    h1 = h2 = 0
    whole = len(key) & ~15
    for low, high in struct.iter_unpack("<QQ", key[:whole]):
        h1 ^= scramble(low, C1, 31, C2)
        h1 = (((h1 << 27 | h1 >> 37) & MASK) + h2) * 5 + 0x52DCE729 & MASK
        h2 ^= scramble(high, C2, 33, C1)
        h2 = (((h2 << 31 | h2 >> 33) & MASK) + h1) * 5 + 0x38495AB5 & MASK
    low = high = 0
    for at, byte in enumerate(key[whole:]):
        signed = byte - 256 if byte > 127 else byte
        if at < 8:
            low ^= signed << 8 * at
        else:
            high ^= signed << 8 * (at - 8)
    h2 ^= scramble(high & MASK, C2, 33, C1)
    h1 ^= scramble(low & MASK, C1, 31, C2)
    h1, h2 = h1 ^ len(key), h2 ^ len(key)
    h1 = h1 + h2 & MASK
    h2 = h2 + h1 & MASK
    token = mix(h1) + mix(h2) & MASK
    if token == 1 << 63:  # Long.MIN_VALUE is no token: it stands for the start of the ring
        return (1 << 63) - 1
    return token - (1 << 64) if token >> 63 else token


def java_uuid(text: Json) -> str:
    """What Java's lenient `UUID.fromString(text).toString()` gives; ValueError if it is none."""
    if type(text) is not str or len(text) > 36 or not UUID_TEXT.fullmatch(text):
        raise ValueError(text)
    widths = (8, 4, 4, 4, 12)
    return "-".join(part.lower().zfill(width)[-width:] for part, width in zip(text.split("-"), widths, strict=True))


def object_id(text: Json) -> str:
    if type(text) is not str or not OBJECT_ID_TEXT.fullmatch(text):
        raise ValueError(text)
    return text.lower()


def date_millis(value: Json) -> str:
    if type(value) is not Number or not value.lstrip("-").isdigit():
        raise ValueError(value)
    return str(value)


def binary_text(value: Json) -> str:
    if type(value) is not str:
        raise ValueError(value)
    base64.b64decode(value, validate=True)
    return value


EXTENSIONS: dict[str, Callable[[Json], str]] = {
    "$date": date_millis,
    "$uuid": java_uuid,
    "$objectId": object_id,
    "$binary": binary_text,
}


def id_parts(value: Json) -> tuple[int, str]:
    """The type tag and the text that make the key of an `_id`."""
    if type(value) is str:
        if not value:
            raise Refusal("SHRED_BAD_DOCID_VALUE", "Bad value for '_id' field: empty String not allowed.")
        return ID_STRING, value
    if type(value) is Number:
        return ID_NUMBER, canonical_number(value)
    if value is None:
        return ID_NULL, "null"
    if type(value) is bool:
        return ID_BOOLEAN, dump(value)
    return extended_id_parts(value)


def extended_id_parts(value: Json) -> tuple[int, str]:
    name = next(iter(value)) if type(value) is dict and len(value) == 1 else ""
    if name not in ("$date", "$uuid", "$objectId"):
        raise Refusal("SHRED_BAD_DOCID_TYPE", f"Bad type for '_id' field: {dump(value)}.")
    try:
        return (ID_DATE if name == "$date" else ID_STRING), EXTENSIONS[name](value[name])
    except ValueError:
        raise Refusal("SHRED_BAD_DOCID_VALUE", f"Bad value for '_id' field: {dump(value)}.") from None


def encode_key(tag: int, text: str) -> bytes:
    """Cassandra's bytes of `tuple<tinyint, text>`."""
    encoded = text.encode("utf-8", "replace")
    return struct.pack(">IBI", 1, tag, len(encoded)) + encoded


def key_of(document_id: Json) -> bytes:
    return encode_key(*id_parts(document_id))


def encode_vint(value: int) -> bytes:
    extra = max(0, (value.bit_length() - 1) // 7)
    if extra == 0:
        return bytes([value])
    marked = value | (0xFF << 8 - extra & 0xFF) << 8 * extra
    return marked.to_bytes(extra + 1, "big")


def decode_vint(data: bytes, at: int) -> tuple[int, int]:
    """The value and the place after it; IndexError at the end of the data."""
    first = data[at]
    extra = 8 - (first ^ 0xFF).bit_length()
    end = at + 1 + extra
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at:end], "big") & (1 << 7 * (extra + 1)) - 1, end


@dataclass(frozen=True)
class PageState:
    """Where a scan goes on: after `key` (empty: at the start), for `remaining` rows, in that `generation`."""

    key: bytes
    remaining: int
    generation: int

    @staticmethod
    def first(generation: int) -> PageState:
        """Where a scan begins."""
        return PageState(b"", UNLIMITED_ROWS, generation)

    def encode(self, *, opaque: bool = False) -> str:
        """Cassandra's own encoding; the generation is where Cassandra has the partition's rows left, 0."""
        fields = (encode_vint(len(self.key)), self.key, b"\0", encode_vint(self.remaining))
        data = b"".join((*fields, encode_vint(self.generation)))
        return base64.b64encode(seal(data) if opaque else data).decode()

    @staticmethod
    def decode(text: str, *, opaque: bool = False) -> PageState:
        """ValueError or IndexError if the text is not a page state."""
        data = base64.b64decode(text, validate=True)
        if opaque:
            data = unseal(data)
        length, at = decode_vint(data, 0)
        key, at = data[at : at + length], at + length
        row_mark, at = decode_vint(data, at)
        remaining, at = decode_vint(data, at)
        generation, at = decode_vint(data, at)
        if row_mark or at != len(data):
            raise ValueError(text)
        return PageState(key, remaining, generation)


SEAL: Final = b"the key of opaque page states"


def seal(data: bytes) -> bytes:
    """Encrypted and signed: the same for the same data; nothing of it can be seen or changed."""
    signature = hashlib.blake2b(data, key=SEAL, digest_size=16).digest()
    return signature + veil(data, signature)


def unseal(sealed: bytes) -> bytes:
    """ValueError if one bit of it is another."""
    signature, data = sealed[:16], veil(sealed[16:], sealed[:16])
    if hashlib.blake2b(data, key=SEAL, digest_size=16).digest() != signature:
        raise ValueError("not sealed here")
    return data


def veil(data: bytes, signature: bytes) -> bytes:
    stream = hashlib.shake_256(SEAL + signature).digest(len(data))
    return bytes(one ^ other for one, other in zip(data, stream, strict=True))


# ---------------------------------------------------------------------------------------- rows in token order

Row = tuple[int, bytes, bytes]  # token, key, document text


class Rows:
    """Documents in token order, in buckets: finding and inserting never touch the whole collection."""

    BUCKET: Final = 512

    def __init__(self) -> None:
        self.buckets: list[list[Row]] = [[]]
        self.tops: list[Row] = []  # the last row of every bucket but the last bucket
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        for bucket in self.buckets:
            yield from bucket

    def locate(self, token: int, key: bytes) -> tuple[list[Row], int, int]:
        """The bucket, its number, and the place in it where that key is or would be."""
        probe = (token, key, b"")
        number = bisect_left(self.tops, probe)
        bucket = self.buckets[number]
        return bucket, number, bisect_left(bucket, probe)

    def get(self, key: bytes) -> Row | None:
        bucket, _, at = self.locate(murmur_token(key), key)
        return bucket[at] if at < len(bucket) and bucket[at][1] == key else None

    def put(self, key: bytes, text: bytes) -> None:
        token = murmur_token(key)
        bucket, number, at = self.locate(token, key)
        row = (token, key, text)
        if at < len(bucket) and bucket[at][1] == key:
            bucket[at] = row
        else:
            insort(bucket, row)
            self.count += 1
        self.tidy(number)

    def tidy(self, number: int) -> None:
        bucket = self.buckets[number]
        if len(bucket) > 2 * self.BUCKET:
            self.buckets[number : number + 1] = [bucket[: self.BUCKET], bucket[self.BUCKET :]]
            self.tops.insert(number, bucket[self.BUCKET - 1])
        elif number < len(self.tops) and bucket:
            self.tops[number] = bucket[-1]

    def delete(self, key: bytes) -> bool:
        bucket, _, at = self.locate(murmur_token(key), key)
        if at == len(bucket) or bucket[at][1] != key:
            return False
        del bucket[at]  # an emptied bucket keeps its top: the top is only a bound
        self.count -= 1
        return True

    def after(self, key: bytes, how_many: int) -> list[Row]:
        """Up to `how_many` rows after that key, which need not be there; from the start if it is empty."""
        number = at = 0
        if key:
            _, number, at = self.locate(murmur_token(key), key + b"\0")
        rows = self.buckets[number][at : at + how_many]
        while len(rows) < how_many and number + 1 < len(self.buckets):
            number += 1
            rows += self.buckets[number][: how_many - len(rows)]
        return rows


# ------------------------------------------------------------------------------- servers with other page states

PAGE_STATES: dict[str, str] = {
    "cassandra": "as recorded: any key is a position, whether or not there is such a document",
    "opaque": "encrypted and signed: there is no key to be found, and nothing can be changed",
    "refusing": "a guess is refused like garbage",
    "restarting": "a guess brings the first page of the collection, and what follows it",
    "reversing": "a guess brings the documents before its key, and its chain goes on backwards to the start",
    "shuffling": "a guess leads to another place, and its chain goes in a circle, in an order of its own",
    "skipping": "each page of a chain that began with a state which the server did not give lacks one document",
}
"""What the server makes of a guess: a state that it never gave, with a key that no document has.

A state it gave stays good when its document is deleted. One that it never gave is as good as those, but for
`opaque` and `skipping`, if there is a document with that key.
"""


class Start(Enum):
    """How a chain of pages began."""

    SCAN = "without a page state"
    KNOWN = "with a state that the server did not give, and the key of a document"
    GUESS = "with a state that the server did not give, and a key of no document"


@dataclass(frozen=True, eq=False)
class Chain:
    """Pages that follow one another, each asked for with the state that came with the one before."""

    start: Start
    number: int  # among the chains that began as a scan or with a guess, in the order of their first pages
    first_page: tuple[bytes, ...]  # keys


Ranks = tuple[list[int], list[Row]]
RANKS: dict[str, Callable[[int, bytes], int]] = {  # of a token and a key, in the order that a guess leads to
    "reversing": lambda token, key: -token,
    "shuffling": lambda token, key: int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big"),
}

# ---------------------------------------------------------------------------------- collections and databases


class Indexing:
    """Which paths of a collection are indexed."""

    def __init__(self, options: Mapping[str, list[str]]) -> None:
        self.allow = frozenset(options.get("allow", ("*",)))
        self.deny = frozenset(options.get("deny", ()))

    def covers(self, path: str) -> bool:
        if "*" in self.deny or (self.deny and any(is_within(path, denied) for denied in self.deny)):
            return False
        if "*" in self.allow:
            return True
        return any(is_within(path, allowed) or is_within(allowed, path) for allowed in self.allow)


def is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + ".")


INDEXES: Final = (
    "exists_keys",
    "array_size",
    "array_contains",
    "query_bool_values",
    "query_dbl_values",
    "query_text_values",
    "query_timestamp_values",
    "query_null_values",
)
VECTOR_INDEX, LEXICAL_INDEX, NUMBER_INDEX = "query_vector_value", "query_lexical_value", "query_dbl_values"


class Collection:
    """The documents of one collection and its definition, `options`, as findCollections reports it."""

    def __init__(self, keyspace: str, name: str, options: dict[str, Json], generation: int) -> None:
        self.keyspace = keyspace
        self.name = name
        self.generation = generation
        self.rows = Rows()
        self.loaded = 0
        self.version = 0
        self.last_page: list[Row] = []
        self.vectors: tuple[int, list[Row], Any] | None = None
        self.ranked: tuple[int, str, Ranks] | None = None
        self.issued: dict[str, Chain] = {}  # the page states that were given, and the chain of each
        self.chains: list[Chain] = []
        self.define(options)

    def define(self, options: dict[str, Json]) -> None:
        self.options = options
        self.indexing = Indexing(options.get("indexing") or {})
        self.vector: dict[str, Json] | None = options.get("vector")
        self.has_lexical = bool((options.get("lexical") or {}).get("enabled"))
        self.id_type: str = (options.get("defaultId") or {}).get("type", "")
        self.indexes = set(self.all_indexes)

    @property
    def full_name(self) -> str:
        return f"{self.keyspace}.{self.name}"

    @property
    def all_indexes(self) -> list[str]:
        """The indexes that its definition asks for, in the order in which they are made."""
        names = [] if "*" in self.indexing.deny else list(INDEXES)
        return names + [VECTOR_INDEX] * (self.vector is not None) + [LEXICAL_INDEX] * self.has_lexical

    @property
    def missing_indexes(self) -> list[str]:
        return [name for name in self.all_indexes if name not in self.indexes]

    def put(self, key: bytes, text: bytes) -> None:
        self.rows.put(key, text)
        self.version += 1

    def delete(self, key: bytes) -> bool:
        self.version += 1
        return self.rows.delete(key)

    def clear(self) -> None:
        self.rows = Rows()
        self.version += 1

    def issue(self, state: str, chain: Chain) -> None:
        """Give that state to the chain; two may come to the same one, and then an ordinary scan stays one."""
        if chain.start is Start.SCAN:
            self.issued[state] = chain
        else:
            self.issued.setdefault(state, chain)

    def ranks(self, page_states: str) -> Ranks:
        """The rows in another order, with the numbers they are ordered by; kept until the collection changes."""
        if self.ranked is None or self.ranked[:2] != (self.version, page_states):
            rank = RANKS[page_states]
            rows = sorted(self.rows, key=lambda row: rank(row[0], row[1]))
            self.ranked = (self.version, page_states, ([rank(row[0], row[1]) for row in rows], rows))
        return self.ranked[2]


class Database:
    """Keyspaces of collections, and what the server around them can do."""

    def __init__(self) -> None:
        self.keyspaces: dict[str, dict[str, Collection]] = {name: {} for name in SYSTEM_KEYSPACES}
        self.schemas: dict[str, table_api.Schema] = {}
        self.generations: dict[tuple[str, str], int] = {}
        self.planned_ids: list[Json] = []
        self.lock = threading.RLock()
        self.page_size = 50
        self.page_states = "cassandra"
        self.estimate_factor: float | None = None
        self.astra = False
        self.vectorize = False
        self.max_collections: int | None = None

    @property
    def is_opaque(self) -> bool:
        return self.page_states == "opaque"

    def keyspace(self, name: str) -> dict[str, Collection]:
        if name not in self.keyspaces:
            raise RequestRefusal(
                "UNKNOWN_KEYSPACE",
                "The command tried to use a Keyspace that does not exist in the Database.\n\n"
                f"The keyspace used by the command: {name}.\n\nResend the command using a Keyspace "
                "that exists.",
            )
        return self.keyspaces[name]

    def collection(self, keyspace: str, name: str) -> Collection:
        from tests.emulators import tables as table_api

        collections = self.keyspace(keyspace)
        if name not in collections:
            raise RequestRefusal(
                "UNKNOWN_COLLECTION_OR_TABLE",
                f"The command tried to get a Collection or Table {name} that does not exist in the "
                f"Keyspace {keyspace}."
                "\n\nThe keyspace has the existing collections or tables: "
                f"{', '.join(sorted({*collections, *table_api.schema_of(self, keyspace).tables})) or 'None'}."
                "\n\nResend the command using a Collection or Table that exists.",
            )
        return collections[name]

    def add(self, keyspace: str, name: str, options: dict[str, Json]) -> Collection:
        """Make a collection, or make it anew: page states of the former one become invalid."""
        generation = self.generations.get((keyspace, name), -1) + 1
        self.generations[keyspace, name] = generation
        made = Collection(keyspace, name, options, generation)
        self.keyspaces.setdefault(keyspace, {})[name] = made
        return made


# ------------------------------------------------------------------------------------------------ definitions

OPTION_NAMES: Final = ("defaultId", "indexing", "lexical", "rerank", "vector")
REPORTED_ORDER: Final = ("defaultId", "vector", "indexing", "lexical", "rerank")
NESTED_NAMES: dict[str, tuple[str, ...]] = {
    "defaultId": ("type",),
    "indexing": ("allow", "deny"),
    "lexical": ("analyzer", "enabled"),
    "rerank": ("enabled", "service"),
    "vector": ("dimension", "metric", "service", "sourceModel"),
}
ID_TYPES: Final = ("objectId", "uuid", "uuidv6", "uuidv7")
METRICS: Final = ("dot_product", "cosine", "euclidean")
DEFAULT_DIMENSIONS: dict[str, int] = {"text-embedding-3-large": 3072, "text-embedding-3-small": 1536}
NVIDIA_RERANKER: Final = {"provider": "nvidia", "modelName": "nvidia/llama-3.2-nv-rerankqa-1b-v2"}


def resolve_options(database: Database, given: Mapping[str, Json] | None) -> dict[str, Json]:
    """The definition a new collection gets, defaults filled in; a refusal if it is not valid here."""
    options = {name: value for name, value in (given or {}).items() if value is not None}
    check_option_names(options)
    resolvers: dict[str, Callable[[Database, Json], Json]] = {
        "defaultId": resolve_default_id,
        "vector": resolve_vector,
        "indexing": resolve_indexing,
        "lexical": resolve_lexical,
        "rerank": resolve_rerank,
    }
    resolved = {name: resolvers[name](database, options.get(name)) for name in REPORTED_ORDER}
    return {name: value for name, value in resolved.items() if value is not None}


def check_option_names(options: Mapping[str, Json]) -> None:
    levels: list[tuple[str, Mapping[str, Json], tuple[str, ...]]] = [
        ("createCollection.options", options, OPTION_NAMES)
    ]
    for name, value in options.items():
        if name in NESTED_NAMES and isinstance(value, dict):
            levels.append((f"createCollection.options.{name}", value, NESTED_NAMES[name]))
    for where, value, known in levels:
        for name in value:
            if name not in known:
                valid = ", ".join(f'"{each}"' for each in known)
                raise RequestRefusal(
                    "INVALID_CREATE_COLLECTION_FIELD",
                    "'createCollection' command referenced unrecognized field(s): No option "
                    f'"{name}" exists for '
                    f"`{where}` (valid options: {valid})\n\nResend 'createCollection' with only "
                    "valid fields.",
                )


def resolve_default_id(database: Database, value: Json) -> Json:
    if value is None:
        return None
    if value.get("type") not in ID_TYPES:
        raise invalid_field(
            "command.options.defaultId.type", value.get("type"), f"must be one of {', '.join(ID_TYPES)}"
        )
    return {"type": value["type"]}


def resolve_vector(database: Database, value: Json) -> Json:
    if value is None:
        return None
    metric, service, dimension = value.get("metric", "cosine"), value.get("service"), value.get("dimension")
    if metric not in METRICS:
        why = "function name can only be 'dot_product', 'cosine' or 'euclidean'"
        raise invalid_field("command.options.vector.metric", metric, why)
    if service is not None and not database.vectorize:
        message = "Vectorize feature is not available in the environment."
        raise RequestRefusal("VECTORIZE_FEATURE_NOT_AVAILABLE", message)
    if dimension is None and service is not None:
        dimension = DEFAULT_DIMENSIONS.get(service.get("modelName", ""), 1024)
    if not isinstance(dimension, int) or not 1 <= dimension <= MAX_DIMENSION:
        raise invalid_field("command.options.vector.dimension", dimension, f"must be between 1 and {MAX_DIMENSION}")
    made = {"dimension": dimension, "metric": metric, "sourceModel": value.get("sourceModel", "other")}
    return made if service is None else {**made, "service": service}


def resolve_indexing(database: Database, value: Json) -> Json:
    if value is not None and (len(value) != 1 or not isinstance(next(iter(value.values())), list)):
        raise RequestRefusal("INVALID_INDEXING_DEFINITION", "`allow` and `deny` cannot be used together or be empty.")
    return value


def resolve_lexical(database: Database, value: Json) -> Json:
    if value is None:
        value = {"enabled": database.astra}
    if not value.get("enabled"):
        return {"enabled": False}
    if not database.astra:
        raise RequestRefusal(
            "LEXICAL_FEATURE_NOT_ENABLED",
            "The command attempted to enable lexical search functionality but lexical search is "
            "not supported by this "
            "database.",
        )
    return {"enabled": True, "analyzer": value.get("analyzer", "standard")}


def resolve_rerank(database: Database, value: Json) -> Json:
    if value is None:
        value = {"enabled": database.astra}
    if not value.get("enabled"):
        return {"enabled": False}
    if not database.astra:
        raise RequestRefusal("RERANKING_FEATURE_NOT_ENABLED", "Reranking is not supported by this database.")
    return {"enabled": True, "service": value.get("service", NVIDIA_RERANKER)}


# -------------------------------------------------------------------------------------------- document checks


class Checker:
    """Looks over one document as the server does before it stores it."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.indexed_fields = 0

    def document(self, document: dict[str, Json]) -> None:
        if document.get(LEXICAL) is not None and not self.collection.has_lexical:
            raise Refusal(
                "LEXICAL_NOT_ENABLED_FOR_COLLECTION",
                "Lexical content can only be added and filtering and sort only be used on "
                "collections for which Lexical "
                f"feature is enabled.\nThe collection {self.collection.full_name} does not have "
                "Lexical feature enabled.",
            )
        self.fields(document, "", 1)
        check_vector(self.collection, document.get(VECTOR))

    def fields(self, value: dict[str, Json], path: str, depth: int) -> None:
        check_depth(depth)
        for name, item in value.items():
            if depth == 1 and (name in UNPROJECTED or name == "_id"):
                continue
            check_name(name)
            encoded = name.replace("&", "&&").replace(".", "&.")
            self.value(item, f"{path}.{encoded}" if path else encoded, depth + 1)
        if len(value) > MAX_FIELDS_PER_OBJECT and (not path or self.collection.indexing.covers(path)):
            raise limit_violation(
                f"number of properties an indexable Object ({f'property {path!r}' if path else 'root'}) has "
                f"({len(value)}) exceeds maximum allowed ({MAX_FIELDS_PER_OBJECT})"
            )

    def value(self, value: Json, path: str, depth: int) -> None:
        if len(path) > MAX_PATH_CHARS:
            raise limit_violation(f"field path length ({len(path)}) exceeds maximum allowed ({MAX_PATH_CHARS})")
        indexed = self.collection.indexing.covers(path)
        if type(value) is dict:
            self.object(value, path, depth, indexed)
        elif type(value) is list:
            self.array(value, path, depth, indexed)
        elif indexed:
            self.count_indexed()
            if type(value) is str:
                check_string(value, path)

    def count_indexed(self) -> None:
        self.indexed_fields += 1
        if self.indexed_fields > MAX_INDEXED_FIELDS:
            raise limit_violation(
                f"total number of indexed properties ({self.indexed_fields}) in document exceeds "
                "maximum allowed "
                f"({MAX_INDEXED_FIELDS})"
            )

    def object(self, value: dict[str, Json], path: str, depth: int, indexed: bool) -> None:
        if len(value) == 1 and (name := next(iter(value))) in EXTENSIONS:
            check_depth(depth)
            if indexed:
                self.count_indexed()
                check_extension(name, value[name], path)
            return
        self.fields(value, path, depth)

    def array(self, value: list[Json], path: str, depth: int, indexed: bool) -> None:
        check_depth(depth)
        if indexed and len(value) > MAX_INDEXED_ARRAY:
            raise limit_violation(
                f"number of elements an indexable Array (field '{path}') has ({len(value)}) exceeds "
                "maximum allowed "
                f"({MAX_INDEXED_ARRAY})"
            )
        for item in value:
            self.value(item, path, depth + 1)


def check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise limit_violation(f"document depth exceeds maximum allowed ({MAX_DEPTH})")


def check_name(name: str) -> None:
    if not name:
        raise Refusal("SHRED_BAD_FIELD_NAME", "Document field name not valid: field name '' is empty.")
    if name.startswith("$"):
        raise Refusal("SHRED_BAD_FIELD_NAME", f"Document field name not valid: field name '{name}' starts with '$'.")


def check_string(value: str, path: str) -> None:
    size = len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if size > MAX_INDEXED_STRING_BYTES:
        raise limit_violation(
            f"indexed String value (field '{path}') length ({size} bytes) exceeds maximum allowed "
            f"({MAX_INDEXED_STRING_BYTES} bytes)"
        )


def check_extension(name: str, value: Json, path: str) -> None:
    try:
        EXTENSIONS[name](value)
    except ValueError:
        message = f"Bad EJSON value: invalid value ({dump(value)}) for extended JSON type '{name}' (path '{path}')."
        raise Refusal("SHRED_BAD_EJSON_VALUE", message) from None


def check_vector(collection: Collection, value: Json) -> None:
    if value is None or collection.vector is None:
        return
    length = vector_length(value)
    if length != collection.vector["dimension"]:
        raise Refusal(
            "INVALID_VECTOR_LENGTH",
            "The command attempted to update or find using `$vector`, using a vector that has a "
            "length different to the "
            "declared '$vector' dimension for the Collection.\n\nThe collection was: "
            f"{collection.full_name}.\n"
            f"The configured vector dimension is: {collection.vector['dimension']}.\n\n"
            "Resend the command using a vector of the correct length.",
        )


def vector_length(value: Json) -> int:
    if type(value) is dict and list(value) == ["$binary"]:
        try:
            size = len(base64.b64decode(value["$binary"], validate=True))
        except (binascii.Error, TypeError, ValueError):
            size = 1
        if size % 4 or not size:
            raise Refusal("SHRED_BAD_BINARY_VECTOR_VALUE", "The $binary value of $vector does not decode to floats.")
        return size // 4
    if value == []:
        raise Refusal("SHRED_BAD_VECTOR_SIZE", "$vector value can't be empty.")
    if type(value) is not list or set(map(type, value)) != {Number}:
        raise Refusal("SHRED_BAD_VECTOR_VALUE", "$vector value needs to be array of numbers.")
    return len(value)


def check_usable(collection: Collection, document: Json, position: int) -> None:
    """The refusals that fail the whole request, whatever the other documents are."""
    if type(document) is not dict:
        raise RequestRefusal("SHRED_BAD_DOCUMENT_TYPE", "Document to shred must be a JSON Object.")
    if VECTOR in document and VECTORIZE in document:
        raise RequestRefusal(
            "INVALID_USAGE_OF_VECTORIZE",
            "'$vector' and '$vectorize' cannot be used together in same document: issue in "
            "document at position "
            f"{position}.\n\nResend command with only '$vector' or '$vectorize'.",
        )
    if "$hybrid" in document:
        raise not_implemented("$hybrid")
    if document.get(VECTOR) is not None and collection.vector is None:
        message = f"Vector search is not enabled for collection: {collection.full_name}."
        raise RequestRefusal("VECTOR_SEARCH_NOT_SUPPORTED", message)


def is_blank(value: Json) -> bool:
    return value is None or (type(value) is str and not value.strip())


def with_embedding(collection: Collection, document: dict[str, Json]) -> dict[str, Json]:
    """The document with the `$vector` that the server adds beside `$vectorize`."""
    if VECTORIZE not in document:
        return document
    text = document[VECTORIZE]
    if is_blank(text):
        return {**document, VECTOR: None}
    service = (collection.vector or {}).get("service")
    if service is None:
        raise RequestRefusal(
            "EMBEDDING_SERVICE_NOT_CONFIGURED",
            f"Collection '{collection.name}' does not have embedding service configured: cannot "
            "vectorize data.\n\n"
            "Collection must be recreated with embedding service configuration to allow vectorization.",
        )
    if type(text) is not str:
        raise RequestRefusal("CANNOT_VECTORIZE", "$vectorize value needs to be text.")
    return {
        **document,
        VECTOR: {"$binary": embed(text, cast(dict[str, int], collection.vector)["dimension"])},
    }


@dataclass(frozen=True)
class Prepared:
    """A document ready to be stored, or the reason why it cannot be."""

    id: Json
    key: bytes = b""
    text: bytes = b""
    refusal: Refusal | None = None


def prepare(collection: Collection, document: dict[str, Json], new_id: Callable[[str], Json]) -> Prepared:
    document_id = document["_id"] if "_id" in document else new_id(collection.id_type)
    whole = {"_id": document_id, **document}
    try:
        key = key_of(document_id)
        text = dump(whole)
        if len(text) > MAX_DOCUMENT_CHARS:
            check_size(text)
        Checker(collection).document(whole)
    except Refusal as refusal:
        return Prepared(document_id, refusal=refusal)
    return Prepared(document_id, key, text.encode())


def check_size(text: str) -> None:
    chars = len(text) - 10 * len(re.findall(r"(?<!\\)(?:\\\\)*\\uD[89AB]", text))
    if chars > MAX_DOCUMENT_CHARS:
        raise limit_violation(f"document size ({chars} chars) exceeds maximum allowed ({MAX_DOCUMENT_CHARS})")


def time_uuid(version: int) -> str:
    """A random UUID with the time in front, as versions 6 and 7 have it."""
    ticks = time.time_ns() // 1_000_000 if version == 7 else time.time_ns() // 100 + 0x01B21DD213814000
    bits = ticks << 80 if version == 7 else (ticks >> 12) << 80 | (ticks & 0xFFF) << 64
    bits |= random.getrandbits(62) | (random.getrandbits(12) << 64 if version == 7 else 0)
    return str(uuid.UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | version << 76 | 0x2 << 62))


NEW_IDS: dict[str, Callable[[], Json]] = {
    "": lambda: str(uuid.uuid4()),
    "objectId": lambda: {"$objectId": f"{int(time.time()):08x}{random.getrandbits(64):016x}"},
    "uuid": lambda: {"$uuid": str(uuid.uuid4())},
    "uuidv6": lambda: {"$uuid": time_uuid(6)},
    "uuidv7": lambda: {"$uuid": time_uuid(7)},
}


# ---------------------------------------------------------------------------------------------------- vectors


def embed(text: str, dimension: int) -> str:
    """A unit vector that depends on nothing but the text, as base64 of big-endian float32."""
    source = random.Random(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    values = [source.gauss(0.0, 1.0) for _ in range(dimension)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return base64.b64encode(struct.pack(f">{dimension}f", *(value / length for value in values))).decode()


def floats_of(vector: Json) -> Any:
    import numpy

    if isinstance(vector, dict):
        return numpy.frombuffer(base64.b64decode(vector["$binary"]), dtype=">f4").astype(numpy.float32)
    return numpy.asarray(vector, dtype=numpy.float32)


def matrix_of(collection: Collection) -> tuple[list[Row], Any]:
    """The rows that have a vector, and their vectors; kept until the collection changes."""
    import numpy

    if collection.vectors is None or collection.vectors[0] != collection.version:
        rows, vectors = [], []
        for row in collection.rows:
            if b'"$vector":' in row[2] and (vector := json.loads(row[2]).get(VECTOR)) is not None:
                rows.append(row)
                vectors.append(floats_of(vector))
        matrix = numpy.stack(vectors) if vectors else numpy.zeros((0, 1), numpy.float32)
        collection.vectors = (collection.version, rows, matrix)
    return collection.vectors[1], collection.vectors[2]


def similarities(metric: str, matrix: Any, vector: Any) -> Any:
    import numpy

    if metric == "dot_product":  # products of the largest float32 fit
        matrix, vector = matrix.astype("f8"), vector.astype("f8")
    if metric == "euclidean":
        return 1 / (1 + ((matrix - vector) ** 2).sum(axis=1))
    products = matrix @ vector
    if metric == "cosine":
        with numpy.errstate(all="ignore"):
            products = products / (numpy.linalg.norm(matrix, axis=1) * numpy.linalg.norm(vector))
    return (1 + products) / 2


def nearest(collection: Collection, vector: Json, limit: int) -> list[tuple[Row, float]]:
    rows, matrix = matrix_of(collection)
    if not rows:
        return []
    scores = similarities(cast(dict[str, str], collection.vector)["metric"], matrix, floats_of(vector))
    order = (-scores).argsort(kind="stable")[:limit]
    return [(rows[at], float(str(scores[at]))) for at in order]


# ------------------------------------------------------------------------------------------------- projection

Projection = Callable[[bytes], bytes]


def drop_unprojected(text: bytes) -> bytes:
    if b'"$vector":' not in text and b'"$vectorize":' not in text and b'"$lexical":' not in text:
        return text
    return project(text, lambda name: name not in UNPROJECTED)


def project(text: bytes, keeps: Callable[[str], bool]) -> bytes:
    document = QUICK_PARSER.decode(text.decode())
    return dump({name: value for name, value in document.items() if keeps(name)}).encode()


def projection_of(given: Json) -> Projection:
    wanted = {name: bool(value) for name, value in (plain(given) or {}).items()}
    if not wanted:
        return drop_unprojected
    if "*" in wanted:
        return (lambda text: text) if wanted["*"] else (lambda text: project(text, lambda name: False))
    if any(wanted.values()):
        return lambda text: project(text, lambda name: wanted.get(name, name == "_id"))
    return lambda text: project(text, lambda name: wanted.get(name, name not in UNPROJECTED))


# --------------------------------------------------------------------------------------------------- commands


@dataclass
class Call:
    """One command on its way through the database."""

    database: Database
    keyspace: str
    collection_name: str
    arguments: dict[str, Json]
    client_is_there: Callable[[float], bool] = lambda _seconds: True
    inserted: list[tuple[Any, Any]] = field(default_factory=list)  # collections and keys, or tables and rows

    @property
    def collection(self) -> Collection:
        return self.database.collection(self.keyspace, self.collection_name)

    @property
    def options(self) -> dict[str, Json]:
        return self.arguments.get("options") or {}

    @property
    def state_text(self) -> Json:
        """The page state as it was given; None if there is none."""
        return self.options.get("pageState", self.options.get("initialPageState"))

    def new_id(self, id_type: str) -> Json:
        planned = self.database.planned_ids
        return planned.pop(0) if planned else NEW_IDS[id_type]()


Answer = dict[str, Json]
OK: Final[Answer] = {"status": {"ok": 1}}


def find_keyspaces(call: Call) -> Answer:
    return {"status": {"keyspaces": list(call.database.keyspaces)}}


def create_keyspace(call: Call) -> Answer:
    call.database.keyspaces.setdefault(call.arguments["name"], {})
    return OK


def drop_keyspace(call: Call) -> Answer:
    call.database.keyspaces.pop(call.arguments["name"], None)
    call.database.schemas.pop(call.arguments["name"], None)
    return OK


def find_collections(call: Call) -> Answer:
    collections = sorted(call.database.keyspace(call.keyspace).items())
    if call.options.get("explain") is not True:
        return {"status": {"collections": [name for name, _ in collections]}}
    return {"status": {"collections": [{"name": name, "options": each.options} for name, each in collections]}}


def create_collection(call: Call) -> Answer:
    from tests.emulators import tables as table_api

    collections = call.database.keyspace(call.keyspace)
    name = call.arguments.get("name")
    if type(name) is not str or not re.fullmatch(r"[a-zA-Z0-9_]{1,48}", name):
        raise RequestRefusal(
            "UNSUPPORTED_SCHEMA_NAME",
            "The command attempted to create a Collection with a name that is not "
            "supported.\n\nThe supported Collection "
            "names must not be empty, more than 48 characters long, or contain "
            "non-alphanumeric-underscore characters.\n"
            f"The command used the unsupported Collection name: '{name}'.\n\n"
            "Resend the command using a supported Collection name.",
        )
    options = resolve_options(call.database, plain(call.options))
    table_api.refuse_name_of_table(call, name)
    if name not in collections:
        check_room(call.database)
        call.database.add(call.keyspace, name, options).indexes.clear()  # `Exchange.make_indexes` makes them
    elif collections[name].options != options:
        raise RequestRefusal(
            "EXISTING_COLLECTION_DIFFERENT_SETTINGS",
            f"Collection '{name}' already exists but with settings different from ones passed with "
            "'createCollection' "
            "command.\n\nIf you need to change collection settings you will need to "
            "'deleteCollection', then re-create "
            "with new settings.",
        )
    return OK


def check_room(database: Database) -> None:
    limit, have = database.max_collections, sum(map(len, database.keyspaces.values()))
    if limit is not None and have >= limit:
        raise RequestRefusal(
            "TOO_MANY_COLLECTIONS",
            f"Too many collections: number of collections in database cannot exceed {limit}, already have {have}.",
        )


def delete_collection(call: Call) -> Answer:
    from tests.emulators import tables as table_api

    call.database.keyspace(call.keyspace).pop(call.arguments["name"], None)
    table_api.drop_quietly(call, call.arguments["name"])
    return OK


def selected_keys(call: Call) -> list[bytes] | None:
    """The keys a filter names, without repetition; None if it asks for every document."""
    given = call.arguments.get("filter") or {}
    if not given:
        return None
    if list(given) != ["_id"]:
        return keys_in_range(call, given)
    value = given["_id"]
    if type(value) is dict and "$in" in value:
        return keys_of_in(value)
    if type(value) is dict and list(value) == ["$eq"]:
        value = value["$eq"]
    return [filter_key(value)]


RANGES: dict[str, Callable[[float, float], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def keys_in_range(call: Call, given: dict[str, Json]) -> list[bytes]:
    """The keys of the documents whose top-level field is a number in a range, `{"n": {"$gt": 5}}`."""
    if len(given) != 1 or type(next(iter(given.values()))) is not dict:
        raise not_implemented(f"the filter {dump(given)}")
    ((name, conditions),) = plain(given).items()
    if not conditions.keys() <= RANGES.keys() or not all(type(limit) in (int, float) for limit in conditions.values()):
        raise not_implemented(f"the filter {dump(given)}")
    if NUMBER_INDEX in call.collection.missing_indexes:
        raise RequestRefusal(
            "INVALID_DATABASE_QUERY",
            "The Data API command generated a database query that while syntactically correct, was rejected as invalid "
            "by the database.  \n\nThe Data API should have generated a valid query, or returned an error before "
            "sending the query to the database. \n\nThe command used the keyspace and table or collection: "
            f"{call.collection.full_name}.\n\nRetrying the command will likely result in the same error.",
        )

    def matches(value: Json) -> bool:
        return type(value) in (int, float) and all(RANGES[each](value, limit) for each, limit in conditions.items())

    return [key for _, key, text in call.collection.rows if matches(json.loads(text).get(name))]


def keys_of_in(value: dict[str, Json]) -> list[bytes]:
    values = value["$in"]
    if len(value) != 1 or type(values) is not list:
        raise RequestRefusal("FILTER_INVALID_EXPRESSION", "$in operator must have an ARRAY of values.")
    if len(values) > MAX_IN_VALUES:
        raise RequestRefusal(
            "FILTER_INVALID_EXPRESSION",
            f"$in operator must have at most {MAX_IN_VALUES} values, had {len(values)}.",
        )
    return list(dict.fromkeys(map(filter_key, values)))


def filter_key(value: Json) -> bytes:
    if type(value) is dict and next(iter(value), "") not in EXTENSIONS:
        raise not_implemented(f"the filter on _id {dump(value)}")
    try:
        return key_of(value)
    except Refusal as refusal:
        raise RequestRefusal(refusal.code, refusal.message) from None


def selected_rows(call: Call, keys: list[bytes]) -> list[Row]:
    rows = (call.collection.rows.get(key) for key in keys)
    return sorted(row for row in rows if row is not None)


def asked_state(call: Call) -> PageState:
    text, collection = call.state_text, call.collection
    if text is None:
        limit = call.options.get("limit")
        first = PageState.first(collection.generation)
        return replace(first, remaining=int(limit)) if limit else first
    try:
        state = PageState.decode(text, opaque=call.database.is_opaque)
    except (ValueError, IndexError, TypeError):
        raise bad_page_state(collection) from None
    if state.generation != collection.generation:
        raise bad_page_state(collection)
    return state


def find(call: Call) -> Answer:
    if call.arguments.get("sort"):
        return find_sorted(call)
    if call.options.get("skip"):
        raise not_implemented("skip without sort")
    collection, state, keys = call.collection, asked_state(call), selected_keys(call)
    size = min(call.database.page_size, state.remaining)
    chain = None
    if keys is None:
        state, chain, rows = scan(call, state, size)
    else:
        place = (murmur_token(state.key), state.key + b"\0") if state.key else ()
        rows = [row for row in selected_rows(call, keys) if row > place][:size]
    remaining = state.remaining - len(rows)
    collection.last_page = rows
    following = None
    if rows and len(rows) == size and remaining > 0:
        following = PageState(rows[-1][1], remaining, state.generation).encode(opaque=call.database.is_opaque)
        if chain is not None:
            collection.issue(following, chain)
    return found(call, rows, following)


def scan(call: Call, state: PageState, size: int) -> tuple[PageState, Chain, list[Row]]:
    """The next page, the chain it belongs to, and the state that it was given for (see PAGE_STATES)."""
    collection, kind = call.collection, call.database.page_states
    chain = collection.issued.get(call.state_text or "")
    start = start_of(collection, state) if chain is None else chain.start
    if chain is None and start is Start.GUESS and kind == "refusing":
        raise bad_page_state(collection)
    if chain is None and start is Start.GUESS and kind == "restarting":
        state = PageState.first(collection.generation)
    if kind == "skipping" and start is not Start.SCAN:
        rows = collection.rows.after(state.key, size + 1)
        del rows[len(rows) // 2 : len(rows) // 2 + 1]
    elif kind in RANKS and start is Start.GUESS:
        ranks, ranked = collection.ranks(kind)
        at = bisect_right(ranks, RANKS[kind](murmur_token(state.key), state.key))
        rows = ranked[at : at + size]
        if kind == "shuffling":
            rows += ranked[: min(at, size - len(rows))]
    else:
        rows = collection.rows.after(state.key, size)
    return state, chain or begun(collection, start, rows), rows


def start_of(collection: Collection, state: PageState) -> Start:
    """How a chain begins with a state that the server did not give."""
    if not state.key:
        return Start.SCAN
    return Start.GUESS if collection.rows.get(state.key) is None else Start.KNOWN


def begun(collection: Collection, start: Start, rows: Sequence[Row]) -> Chain:
    first_page = tuple(row[1] for row in rows)
    if start is Start.KNOWN:
        return Chain(start, -1, first_page)
    collection.chains.append(Chain(start, len(collection.chains), first_page))
    return collection.chains[-1]


def found(call: Call, rows: Iterable[Row], following: str | None) -> Answer:
    projected = projection_of(call.arguments.get("projection"))
    documents = b",".join([projected(row[2]) for row in rows])
    return {"data": {"documents": documents, "nextPageState": following}}


def find_sorted(call: Call) -> Answer:
    sort = call.arguments["sort"]
    field_name = next(iter(sort))
    if field_name in (VECTOR, VECTORIZE):
        return find_nearest(call, field_name, sort[field_name])
    if field_name.startswith("$"):
        raise not_implemented(f"sorting by {field_name}")
    for name in sort:
        if not call.collection.indexing.covers(name):
            message = f"Collection field '{name}' is not indexed: cannot sort using it. \n\n"
            raise RequestRefusal(
                "SORT_CLAUSE_PATH_UNINDEXED", message + "Resend the command with sort on an indexed field."
            )
    keys = selected_keys(call)
    rows = list(call.collection.rows) if keys is None else selected_rows(call, keys)
    for name, direction in reversed(plain(sort).items()):
        rows.sort(key=partial(sort_rank, name), reverse=direction < 0)
    return found(call, rows[: min(int(call.options.get("limit") or MAX_SORTED), MAX_SORTED)], None)


def sort_rank(name: str, row: Row) -> tuple[int, Json]:
    value = json.loads(row[2]).get(name)
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, int | float):
        return 2, value
    if isinstance(value, str):
        return 3, value
    return (0, 0) if value is None else (4, json.dumps(value))


def find_nearest(call: Call, field_name: str, value: Json) -> Answer:
    collection = call.collection
    if collection.vector is None:
        message = f"Vector search is not enabled for collection: {collection.full_name}."
        raise RequestRefusal("VECTOR_SEARCH_NOT_SUPPORTED", message)
    if VECTOR_INDEX in collection.missing_indexes:
        message = f"The collection {collection.full_name} lacks an index that its definition asks for."
        raise RequestRefusal("CORRUPTED_COLLECTION_SCHEMA", message)
    vector = with_embedding(collection, {VECTORIZE: value})[VECTOR] if field_name == VECTORIZE else value
    check_vector(collection, vector)
    limit = min(int(call.options.get("limit") or MAX_NEAREST), MAX_NEAREST)
    keys = selected_keys(call)
    hits = nearest(collection, plain(vector), limit if keys is None else len(collection.rows))
    hits = [(row, score) for row, score in hits if keys is None or row[1] in keys][:limit]
    rows = [row for row, _ in hits]
    if call.options.get("includeSimilarity") is True:
        projected = projection_of(call.arguments.get("projection"))
        rows = [(0, b"", with_similarity(projected(row[2]), score)) for row, score in hits]
        call = replace(call, arguments={**call.arguments, "projection": {"*": True}})
    answer = found(call, rows, None)
    return {**answer, "status": {"sortVector": vector}} if call.options.get("includeSortVector") is True else answer


def with_similarity(text: bytes, score: float) -> bytes:
    separator = b"," if len(text) > 2 else b""
    return text[:-1] + separator + b'"$similarity":' + json.dumps(score).encode() + b"}"


def first_row(call: Call) -> Row | None:
    keys = selected_keys(call)
    rows = call.collection.rows.after(b"", 1) if keys is None else selected_rows(call, keys)
    return rows[0] if rows else None


def find_one(call: Call) -> Answer:
    if call.arguments.get("sort"):
        call = replace(call, arguments={**call.arguments, "options": {**call.options, "limit": Number("1")}})
        documents: bytes = find_sorted(call)["data"]["documents"]
        return {"data": {"document": documents or None}}
    row = first_row(call)
    projected = projection_of(call.arguments.get("projection"))
    return {"data": {"document": projected(row[2]) if row else None}}


def stored(call: Call, document: Json, position: int = 1) -> Prepared:
    check_usable(call.collection, document, position)
    return prepare(call.collection, with_embedding(call.collection, document), call.new_id)


def store_new(call: Call, prepared: Prepared) -> Refusal | None:
    """INSERT ... IF NOT EXISTS; the refusal if it did not happen."""
    if prepared.refusal is not None:
        return prepared.refusal
    collection = call.collection
    if collection.rows.get(prepared.key) is not None:
        return Refusal(
            "DOCUMENT_ALREADY_EXISTS",
            "Cannot insert the document: a document already exists with given '_id' "
            f"({shown_id(prepared.id)}). \n\nEither resend the command with distinct '_id', or use "
            "an update command "
            "instead.",
        )
    collection.put(prepared.key, prepared.text)
    call.inserted.append((collection, prepared.key))
    return None


def shown_id(document_id: Json) -> str:
    return f"'{id_parts(document_id)[1]}'" if type(document_id) is str else id_parts(document_id)[1]


def insert_one(call: Call) -> Answer:
    prepared = stored(call, call.arguments.get("document"))
    refusal = store_new(call, prepared)
    if refusal is None:
        return {"status": {"insertedIds": [prepared.id]}}
    return {"status": {"insertedIds": []}, "errors": [refusal.as_json(prepared.id)]}


def insert_many(call: Call) -> Answer:
    documents = call.arguments.get("documents")
    if type(documents) is not list or not documents:
        raise invalid_field("command.documents", documents or [], "must not be empty")
    if len(documents) > MAX_INSERTED_DOCUMENTS:
        over = f"{len(documents)} vs {MAX_INSERTED_DOCUMENTS}"
        why = f"amount of documents to insert is over the max limit ({over})"
        raise invalid_field("command.documents", documents, why)
    for position, document in enumerate(documents, 1):
        check_usable(call.collection, document, position)
    prepared = [stored(call, document, position) for position, document in enumerate(documents, 1)]
    outcomes = store_each(call, prepared, ordered=call.options.get("ordered") is True)
    return inserted(prepared, outcomes, call.options.get("returnDocumentResponses") is True)


def store_each(call: Call, prepared: Sequence[Prepared], *, ordered: bool) -> list[Refusal | None]:
    """One outcome a document, fewer if it stopped at a refusal."""
    outcomes: list[Refusal | None] = []
    for each in prepared:
        outcomes.append(store_new(call, each))
        if ordered and outcomes[-1] is not None:
            break
    return outcomes


def inserted(prepared: Sequence[Prepared], outcomes: Sequence[Refusal | None], with_responses: bool) -> Answer:
    errors: list[Json] = []
    responses: list[Json] = []
    for at, each in enumerate(prepared):
        refusal = outcomes[at] if at < len(outcomes) else None
        if at >= len(outcomes):
            responses.append({"_id": each.id, "status": "SKIPPED"})
        elif refusal is None:
            responses.append({"_id": each.id, "status": "OK"})
        else:
            responses.append({"_id": each.id, "status": "ERROR", "errorsIdx": len(errors)})
            errors.append(refusal.as_json(each.id))
    ids = [response["_id"] for response in responses if response["status"] == "OK"]
    answer: Answer = {"status": {"documentResponses": responses} if with_responses else {"insertedIds": ids}}
    return {**answer, "errors": errors} if errors else answer


def find_one_and_replace(call: Call) -> Answer:
    replacement = call.arguments.get("replacement")
    check_usable(call.collection, replacement, 1)
    row = first_row(call)
    if row is None and call.options.get("upsert") is not True:
        return {"data": {"document": None}, "status": {"matchedCount": 0, "modifiedCount": 0}}
    prepared = stored(call, with_id(call, cast(dict[str, Json], replacement), row))
    if prepared.refusal is not None:
        raise prepared.refusal
    if row is not None and prepared.key != row[1]:
        message = "The replace document and document resolved using filter have different _id."
        raise RequestRefusal("DOCUMENT_REPLACE_DIFFERENT_DOCID", message)
    call.collection.put(prepared.key, prepared.text)
    call.inserted.append((call.collection, prepared.key))
    return replaced(call, row, prepared)


def with_id(call: Call, replacement: dict[str, Json], row: Row | None) -> dict[str, Json]:
    if "_id" in replacement:
        return replacement
    if row is not None:
        return {"_id": QUICK_PARSER.decode(row[2].decode())["_id"], **replacement}
    given = (call.arguments.get("filter") or {}).get("_id", replacement)
    return replacement if given is replacement else {"_id": given, **replacement}


def replaced(call: Call, row: Row | None, prepared: Prepared) -> Answer:
    projected = projection_of(call.arguments.get("projection"))
    before = projected(row[2]) if row is not None else None
    document = projected(prepared.text) if call.options.get("returnDocument") == "after" else before
    if row is None:
        status: Answer = {"matchedCount": 0, "upsertedId": prepared.id, "modifiedCount": 0}
    else:
        status = {"matchedCount": 1, "modifiedCount": int(row[2] != prepared.text)}
    return {"data": {"document": document}, "status": status}


def delete_one(call: Call) -> Answer:
    row = first_row(call)
    return {"status": {"deletedCount": int(row is not None and call.collection.delete(row[1]))}}


def delete_many(call: Call) -> Answer:
    keys = selected_keys(call)
    if keys is None:
        call.collection.clear()
        return {"status": {"deletedCount": -1}}
    return {"status": {"deletedCount": sum(map(call.collection.delete, keys))}}


def count_documents(call: Call) -> Answer:
    keys = selected_keys(call)
    count = len(call.collection.rows) if keys is None else len(selected_rows(call, keys))
    return {"status": {"count": count} if count <= MAX_COUNT else {"moreData": True, "count": MAX_COUNT}}


def estimated_document_count(call: Call) -> Answer:
    count, factor = len(call.collection.rows), call.database.estimate_factor
    return {"status": {"count": min(call.collection.loaded, count) if factor is None else round(count * factor)}}


Command = Callable[[Call], Answer]


@dataclass(frozen=True)
class Level:
    """The commands of one kind of address, and the others the server would know there."""

    title: str
    java_class: str
    commands: Mapping[str, Command]
    others: tuple[str, ...]


DATABASE_LEVEL = Level(
    "Database",
    "GeneralCommand",
    {"createKeyspace": create_keyspace, "dropKeyspace": drop_keyspace, "findKeyspaces": find_keyspaces},
    (
        "createNamespace",
        "dropNamespace",
        "findEmbeddingProviders",
        "findNamespaces",
        "findRerankingProviders",
    ),
)
KEYSPACE_LEVEL = Level(
    "Keyspace",
    "KeyspaceCommand",
    {
        "createCollection": create_collection,
        "deleteCollection": delete_collection,
        "findCollections": find_collections,
    },
    ("alterType", "createTable", "createType", "dropIndex", "dropTable", "dropType", "listTables", "listTypes"),
)
COLLECTION_LEVEL = Level(
    "Collection",
    "CollectionCommand",
    {
        "countDocuments": count_documents,
        "deleteMany": delete_many,
        "deleteOne": delete_one,
        "estimatedDocumentCount": estimated_document_count,
        "find": find,
        "findOne": find_one,
        "findOneAndReplace": find_one_and_replace,
        "insertMany": insert_many,
        "insertOne": insert_one,
    },
    (
        "alterTable",
        "createIndex",
        "createTextIndex",
        "createVectorIndex",
        "findAndRerank",
        "findOneAndDelete",
        "findOneAndUpdate",
        "listIndexes",
        "updateMany",
        "updateOne",
    ),
)
ARGUMENTS: dict[str, frozenset[str]] = {
    "countDocuments": frozenset({"filter"}),
    "createCollection": frozenset({"name", "options"}),
    "createKeyspace": frozenset({"name", "options"}),
    "deleteCollection": frozenset({"name"}),
    "deleteMany": frozenset({"filter"}),
    "deleteOne": frozenset({"filter", "sort"}),
    "dropKeyspace": frozenset({"name"}),
    "estimatedDocumentCount": frozenset(),
    "find": frozenset({"filter", "projection", "sort", "options"}),
    "findCollections": frozenset({"options"}),
    "findKeyspaces": frozenset(),
    "findOne": frozenset({"filter", "projection", "sort", "options"}),
    "findOneAndReplace": frozenset({"filter", "sort", "replacement", "projection", "options"}),
    "insertMany": frozenset({"documents", "options"}),
    "insertOne": frozenset({"document"}),
}


# ------------------------------------------------------------------------------------- from a body to a reply


@dataclass(frozen=True)
class Reply:
    """What goes over the wire; `delivery` is how (see DELIVERIES), `amount` its bytes or seconds."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: str = "whole"
    amount: float | None = None


def encode_answer(answer: Answer) -> bytes:
    """The body; documents are copied as the bytes they are stored as."""
    data = answer.get("data")
    if data is None:
        return dump(answer).encode()
    rest = {name: value for name, value in answer.items() if name != "data"}
    tail: bytes = b"," + dump(rest).encode()[1:] if rest else b"}"
    if "document" in data:
        return b"".join((b'{"data":{"document":', data["document"] or b"null", b"}", tail))
    state = dump(data["nextPageState"]).encode()
    return b"".join((b'{"data":{"documents":[', data["documents"], b'],"nextPageState":', state, b"}", tail))


def error_reply(refusal: Refusal, status: int = 200, content_type: str = JSON_TYPE) -> Reply:
    return Reply(status, dump({"errors": [refusal.as_json()]}).encode(), content_type)


def not_json(problem: str, line: int, column: int) -> RequestRefusal:
    where = f"\n at [Source: (ByteArrayInputStream); line: {line}, column: {column}]"
    message = f"Request not valid JSON, problem: {problem}{where}.\n\nResend request as valid JSON."
    return RequestRefusal("REQUEST_NOT_JSON", message)


def read_json(body: bytes) -> Json:
    try:
        return parse(body)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip())
        problem = "Unexpected end-of-input within/between Object entries" if at_end else error.msg
        raise not_json(problem, error.lineno, error.colno) from None
    except DuplicateField as error:
        raise not_json(f"Duplicate field '{error}'", 1, 1) from None
    except NumberTooLong as error:
        message = (
            f"Document size limitation violated: Number value length ({error}) exceeds the maximum allowed "
            f"({MAX_NUMBER_CHARS}, from `StreamReadConstraints.getMaxNumberLength()`)."
        )
        raise RequestRefusal("SHRED_DOC_LIMIT_VIOLATION", message) from None
    except RecursionError:
        raise limit_violation("Document nesting depth exceeds the maximum allowed") from None
    except ValueError as error:  # not UTF-8, NaN, Infinity
        raise not_json(str(error), 1, column_of_constant(body)) from None


def column_of_constant(body: bytes) -> int:
    """Behind the first NaN or Infinity outside a string; 1 if there is none."""
    found = re.finditer(rb'"(?:\\.|[^"\\])*"|NaN|Infinity', body)
    return next((match.end() + 1 for match in found if match[0][:1] != b'"'), 1)


def structure_mismatch(problem: str) -> RequestRefusal:
    return RequestRefusal(
        "REQUEST_STRUCTURE_MISMATCH",
        f"Request is valid JSON but has a structural mismatch: {problem}\n at [Source: "
        "(ByteArrayInputStream); "
        "line: 1, column: 2].\n\nResend request with valid structure.",
    )


def read_command(level: Level, body: bytes) -> tuple[str, dict[str, Json]]:
    """The command's name and arguments; a refusal if the server does not know it."""
    request = read_json(body)
    if type(request) is not dict or len(request) != 1:
        token = "END_OBJECT" if request == {} else "FIELD_NAME" if type(request) is dict else "START_ARRAY"
        raise structure_mismatch(
            f"Unexpected token ({token}), expected FIELD_NAME: need JSON String that contains type "
            "id (for subtype of "
            f"io.stargate.sgv2.jsonapi.api.model.command.{level.java_class})"
        )
    name, arguments = next(iter(request.items()))
    known = sorted((*level.commands, *level.others), key=str.lower)
    if name not in known:
        raise RequestRefusal(
            "COMMAND_UNKNOWN",
            f"Command '{name}' is not a {level.title} Command recognized by Data API.\n\nData API "
            "supports following "
            f"{level.title} Commands: [{', '.join(known)}].\n\nResend using one of the supported commands.",
        )
    if type(arguments) is not dict:
        raise structure_mismatch(f"the arguments of {name} are not a JSON Object")
    return name, arguments


def run(level: Level, name: str, call: Call) -> Answer:
    from tests.emulators import tables as table_api

    if level is not DATABASE_LEVEL:
        call.database.keyspace(call.keyspace)
    table = table_api.table_of(call) if level is COLLECTION_LEVEL else None
    if level is COLLECTION_LEVEL and table is None:
        _ = call.collection
        table_api.refuse_on_collection(name, call)
    command = level.commands.get(name) or (table_api.KEYSPACE_COMMANDS.get(name) if level is KEYSPACE_LEVEL else None)
    if command is None and table is None:
        raise not_implemented(f"the command {name}")
    for argument in call.arguments:
        if argument not in (ARGUMENTS.get(name) or table_api.ARGUMENTS.get(name) or call.arguments):
            message = f"Command '{name}' does not recognize the field '{argument}'."
            raise RequestRefusal("COMMAND_FIELD_UNKNOWN", message)
    return table_api.run_on_table(name, call, table) if table else cast(Command, command)(call)


# ----------------------------------------------------------------------------------------------------- faults


@dataclass
class Exchange:
    """One request that was understood, as a fault sees it: it may act, or answer something else."""

    emulator: DataApiEmulator
    level: Level
    command: str
    call: Call
    body: bytes

    def act(self) -> Reply:
        """Do what was asked and answer as the server would."""
        try:
            with self.emulator.database.lock:
                reply = Reply(body=encode_answer(run(self.level, self.command, self.call)))
            if self.command == "createCollection":
                self.make_indexes()
            return reply
        except Refusal as refusal:
            return error_reply(refusal)

    def suffer(self, fault: Fault) -> Reply:
        """Do what the fault says."""
        from tests.emulators import tables as table_api

        table = table_api.table_of(self.call) if self.level is COLLECTION_LEVEL else None
        if table is not None and fault.action in table_api.TABLE_ACTIONS:
            return table_api.TABLE_ACTIONS[fault.action](self, table, fault.options)
        return ACTIONS[fault.action](self, fault.options)

    def make_indexes(self) -> None:
        """Make what is missing, one by one, as long as the client waits for it."""
        collection = self.emulator.database.collection(self.call.keyspace, self.call.arguments["name"])
        for name in collection.missing_indexes:
            if not self.call.client_is_there(self.emulator.create_s / len(collection.all_indexes)):
                raise ConnectionAbortedError("nobody waits, or the server stops: there is no reply")
            self.emulator.make_index(collection, name)

    @property
    def asked_state(self) -> str:
        """The page state of the request, or one that begins at the start."""
        given: str | None = self.call.options.get("pageState")
        database, generation = self.emulator.database, self.call.collection.generation
        return given or PageState.first(generation).encode(opaque=database.is_opaque)

    @property
    def asked_chain(self) -> Chain | None:
        """The chain that the request goes on with; None if it begins one."""
        collection = self.emulator.database.keyspaces.get(self.call.keyspace, {}).get(self.call.collection_name)
        text = self.call.state_text
        return collection.issued.get(text) if collection is not None and type(text) is str else None

    def target(self, options: Mapping[str, Json]) -> Collection:
        name = options.get("target") or self.call.collection_name
        return self.emulator.database.collection(self.call.keyspace, name)


@dataclass
class Fault:
    """A rule: which requests it meets, how often, and what happens then."""

    action: str
    commands: frozenset[str] | None
    collection: str | None
    contains: bytes | None
    skip: int
    times: int | None
    every: int
    for_s: float | None  # how long it lasts, from the first request it meets; None: for ever
    chain: int | None  # only pages that go on in the chain of that number (see Chain), not its first page
    guess: bool | None  # True: only page states that the server did not give; False: none of them
    options: dict[str, Json]
    seen: int = 0
    fired: int = 0
    began: float = 0.0

    @staticmethod
    def of(rule: Mapping[str, Json]) -> Fault:
        rest = dict(rule)
        command, every, contains = (
            rest.pop("command", None),
            rest.pop("every", None),
            rest.pop("contains", None),
        )
        names = [command] if isinstance(command, str) else command
        made = Fault(
            action=rest.pop("action"),
            commands=None if names is None else frozenset(names),
            collection=rest.pop("collection", None),
            contains=None if contains is None else contains.encode(),
            skip=rest.pop("skip", 0),
            times=rest.pop("times", 1 if every is None else None),
            every=every or 1,
            for_s=rest.pop("for_s", None),
            chain=rest.pop("chain", None),
            guess=rest.pop("guess", None),
            options=rest,
        )
        if made.action not in ACTIONS:
            raise ValueError(f"unknown fault action {made.action!r}; there are {', '.join(sorted(ACTIONS))}")
        return made

    def meets(self, exchange: Exchange) -> bool:
        if self.commands is not None and exchange.command not in self.commands:
            return False
        if self.collection is not None and exchange.call.collection_name != self.collection:
            return False
        return (self.contains is None or self.contains in exchange.body) and self.meets_chain(exchange)

    def meets_chain(self, exchange: Exchange) -> bool:
        if self.chain is None and self.guess is None:
            return True
        chain = exchange.asked_chain
        if self.guess is not None and self.guess != (chain is None and exchange.call.state_text is not None):
            return False
        return self.chain is None or (chain is not None and chain.number == self.chain)

    def is_due(self) -> bool:
        turn = self.seen - self.skip
        self.began = self.began or time.monotonic()
        if self.for_s is not None and time.monotonic() - self.began > self.for_s:
            return False
        return turn > 0 and turn % self.every == 0 and (self.times is None or self.fired < self.times)


Options = Mapping[str, Json]
Action = Callable[[Exchange, Options], Reply]


def act_status(exchange: Exchange, options: Options) -> Reply:
    body = options.get("body", "")
    text = body if isinstance(body, str) else json.dumps(body)
    content_type = options.get("content_type", "text/plain" if isinstance(body, str) else "application/json")
    headers = dict(options.get("headers", {}))
    if "retry_after_date" in options:  # so many seconds from now
        headers["Retry-After"] = formatdate(time.time() + options["retry_after_date"], usegmt=True)
    if options.get("done"):
        exchange.act()
    content = text.encode(errors="surrogateescape")  # "\udced" stands for the byte 0xED
    return Reply(options["status"], content, content_type if text else None, headers)


def act_error(exchange: Exchange, options: Options) -> Reply:
    return Reply(options.get("status", 200), dump({"errors": [scripted_error(options)]}).encode())


def scripted_error(options: Options) -> dict[str, Json]:
    """The error object that a rule describes; what the rule sets to None is left out of it."""
    code = options.get("errorCode", "UNEXPECTED_SERVER_ERROR")
    overrides = {name: options[name] for name in ("family", "scope", "title") if name in options}
    made = error_object(code, options.get("message", f"A scripted fault: {code}."), **overrides)
    return {name: value for name, value in made.items() if value is not None}


def act_document_errors(exchange: Exchange, options: Options) -> Reply:
    """Documents of an insertMany fail with an error each, the others go in; `ids` says which fail (None: all)."""
    ids = options.get("ids")
    documents = exchange.call.arguments["documents"]
    fails = [ids is None or document["_id"] in ids for document in documents]
    exchange.call.arguments["documents"] = [each for each, is_bad in zip(documents, fails, strict=True) if not is_bad]
    reply: dict[str, Json] = {"status": {"documentResponses": []}}
    if not all(fails):
        reply = parse(exchange.act().body)
    errors = reply.setdefault("errors", [])
    responses = iter(reply["status"]["documentResponses"])
    merged = []
    for document, is_bad in zip(documents, fails, strict=True):
        if is_bad:
            merged.append({"_id": document["_id"], "status": "ERROR", "errorsIdx": len(errors)})
            errors.append({**scripted_error(options), "documentIds": [document["_id"]]})
        else:
            merged.append(next(responses))
    answer = {"status": {"documentResponses": merged}} | ({"errors": errors} if errors else {})
    return Reply(body=dump(answer).encode())


def act_add_fields(exchange: Exchange, options: Options) -> Reply:
    """The reply has fields that nobody has heard of, at its top, in its parts and in each of its errors."""
    reply = exchange.act()
    fields = parse(options.get("fields", '{"warnings":[{"limit":1E+400}],"elapsed":1E+400}').encode())
    answer = parse(reply.body)
    parts = [answer, *(answer[name] for name in ("status", "data") if name in answer), *answer.get("errors", [])]
    for part in [*parts, *answer.get("status", {}).get("documentResponses", [])]:
        part.update(fields)
    answer.setdefault("status", fields)
    return replace(reply, body=dump(answer).encode())


def act_reset(exchange: Exchange, options: Options) -> Reply:
    return Reply(delivery="reset")


def act_reset_after(exchange: Exchange, options: Options) -> Reply:
    return replace(exchange.act(), delivery="reset")


def act_truncate(exchange: Exchange, options: Options) -> Reply:
    reply = exchange.act()
    return replace(reply, delivery="truncate", amount=options.get("bytes", len(reply.body) // 2))


def act_down(exchange: Exchange, options: Options) -> Reply:
    """Nobody listens for so many seconds (None: until `start` is called), and every connection ends."""
    threading.Thread(target=exchange.emulator.go_down, args=(options.get("seconds"),), daemon=True).start()
    return Reply(delivery="silence")


def act_reset_inside(exchange: Exchange, options: Options) -> Reply:
    reply = exchange.act()
    return replace(reply, delivery="reset_inside", amount=options.get("bytes", len(reply.body) // 2))


def act_invalid_json(exchange: Exchange, options: Options) -> Reply:
    reply = exchange.act()
    return replace(reply, body=reply.body[: options.get("bytes", len(reply.body) // 2)])


def act_html(exchange: Exchange, options: Options) -> Reply:
    page = options.get("body", "<!DOCTYPE html><html><body><h1>The gateway is resting</h1></body></html>")
    return Reply(options.get("status", 200), page.encode(), "text/html; charset=utf-8")


def act_other_json(exchange: Exchange, options: Options) -> Reply:
    return Reply(body=json.dumps(options.get("json", [])).encode())


def act_delay(exchange: Exchange, options: Options) -> Reply:
    exchange.emulator.stopping.wait(options.get("seconds", 1.0))
    return exchange.act()


def act_trickle(exchange: Exchange, options: Options) -> Reply:
    return replace(exchange.act(), delivery="trickle", amount=options.get("interval", 0.01))


def act_silence(exchange: Exchange, options: Options) -> Reply:
    return Reply(delivery="silence")


def act_empty_page(exchange: Exchange, options: Options) -> Reply:
    if exchange.command != "find":
        return exchange.act()
    answer: Answer = {"data": {"documents": b"", "nextPageState": exchange.asked_state}}
    return Reply(body=encode_answer(answer))


def act_first_page(exchange: Exchange, options: Options) -> Reply:
    """The page state is not looked at: the scan leads back to its start."""
    exchange.call.options.pop("pageState", None)
    return exchange.act()


def act_repeat_page(exchange: Exchange, options: Options) -> Reply:
    if exchange.command != "find" or not exchange.call.collection.last_page:
        return exchange.act()
    rows = exchange.call.collection.last_page
    return Reply(body=encode_answer(found(exchange.call, rows, exchange.asked_state)))


def act_alter_document(exchange: Exchange, options: Options) -> Reply:
    reply = exchange.act()
    for collection, key in inserted_at(exchange, options):
        row = collection.rows.get(key)
        if row is not None:
            collection.put(key, altered(row[2], options))
    return reply


def inserted_at(exchange: Exchange, options: Options) -> list[tuple[Collection, bytes]]:
    at = options.get("index", 0)
    stored_now = exchange.call.inserted
    return [stored_now[at]] if -len(stored_now) <= at < len(stored_now) else []


def altered(text: bytes, options: Options) -> bytes:
    if "find" in options:
        return text.replace(options["find"].encode(), options["replace"].encode())
    return text[:-1] + b"," + dump(options.get("set", {"altered": True})).encode()[1:]


def act_drop_document(exchange: Exchange, options: Options) -> Reply:
    reply = exchange.act()
    for collection, key in inserted_at(exchange, options):
        collection.delete(key)
    return reply


def act_drop_collection(exchange: Exchange, options: Options) -> Reply:
    with exchange.emulator.database.lock:
        exchange.emulator.database.keyspace(exchange.call.keyspace).pop(exchange.target(options).name, None)
    return exchange.act()


def act_create_collection(exchange: Exchange, options: Options) -> Reply:
    """Somebody else makes another collection, with one document."""
    exchange.emulator.create(exchange.call.keyspace, options["name"], options.get("definition"))
    exchange.emulator.put(exchange.call.keyspace, options["name"], '{"_id":"of somebody else"}')
    return exchange.act()


def act_recreate_collection(exchange: Exchange, options: Options) -> Reply:
    with exchange.emulator.database.lock:
        former = exchange.target(options)
        rows = list(former.rows) if options.get("keep_documents") else []
        options_now = {**former.options, **options.get("definition", {})}
        made = exchange.emulator.database.add(former.keyspace, former.name, options_now)
        for _, key, text in rows:
            made.put(key, text)
    return exchange.act()


def act_alter_definition(exchange: Exchange, options: Options) -> Reply:
    collection = exchange.target(options)
    collection.define({**collection.options, **options["definition"]})
    return exchange.act()


def act_insert(exchange: Exchange, options: Options) -> Reply:
    target = exchange.target(options)
    for document in options["documents"]:
        text = (
            document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        )
        exchange.emulator.put(target.keyspace, target.name, text)
    return exchange.act()


def act_delete(exchange: Exchange, options: Options) -> Reply:
    target = exchange.target(options)
    with exchange.emulator.database.lock:
        for document_id in options.get("ids", ()):
            target.delete(key_of(QUICK_PARSER.decode(json.dumps(document_id))))
        for _, key, _ in list(target.rows)[: options.get("count", 0)]:
            target.delete(key)
        if "first_page" in options:  # of the chain of that number: nothing is left of where it began
            for key in target.chains[options["first_page"]].first_page:
                target.delete(key)
    return exchange.act()


def act_turn(exchange: Exchange, options: Options) -> Reply:
    """The server is another from now on: knobs are turned, by their names."""
    for name, value in options["knobs"].items():
        if name not in KNOBS:
            raise ValueError(f"no knob {name!r}; there are {', '.join(KNOBS)}")
        setattr(exchange.emulator, name, value)
    return exchange.act()


def act_bad_page_state(exchange: Exchange, options: Options) -> Reply:
    return error_reply(bad_page_state(exchange.call.collection))


ACTIONS: dict[str, Action] = {
    "status": act_status,
    "error": act_error,
    "document_errors": act_document_errors,
    "add_fields": act_add_fields,
    "reset": act_reset,
    "reset_after": act_reset_after,
    "truncate": act_truncate,
    "reset_inside": act_reset_inside,
    "down": act_down,
    "invalid_json": act_invalid_json,
    "html": act_html,
    "other_json": act_other_json,
    "delay": act_delay,
    "trickle": act_trickle,
    "silence": act_silence,
    "empty_page": act_empty_page,
    "repeat_page": act_repeat_page,
    "alter_document": act_alter_document,
    "drop_document": act_drop_document,
    "drop_collection": act_drop_collection,
    "create_collection": act_create_collection,
    "first_page": act_first_page,
    "recreate_collection": act_recreate_collection,
    "alter_definition": act_alter_definition,
    "insert": act_insert,
    "delete": act_delete,
    "bad_page_state": act_bad_page_state,
    "turn": act_turn,
}


# --------------------------------------------------------------------------------------------------- the wire

REASONS: Final = {200: "OK", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False
    client_is_there: Callable[[float], bool] = lambda _seconds: True
    """Waits so many seconds; False as soon as the client has gone."""


class Connection(socketserver.StreamRequestHandler):
    """One client connection: reads requests and delivers replies until either side closes it."""

    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    server: Server

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        try:
            while (request := self.read_request()) is not None:
                reply = self.server.emulator.reply_to(request)
                if not DELIVERIES[reply.delivery](self, reply) or request.headers.get("connection") == "close":
                    break
        except (OSError, ValueError):
            pass  # the client went away, or does not speak HTTP
        finally:
            self.server.connections.discard(self.connection)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def read_request(self) -> Request | None:
        """None at the end of the connection."""
        first = self.rfile.readline(65536)
        if not first.strip():
            return None
        method, path, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(65536)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, too_large = self.read_body(headers)
        return Request(method, path.partition("?")[0], headers, body, too_large, self.client_is_there)

    def read_body(self, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(self.read_chunks())
            return body, len(body) > MAX_BODY_BYTES
        length = int(headers.get("content-length", 0))
        if length <= MAX_BODY_BYTES:
            return self.rfile.read(length), False
        while length > 0 and (piece := self.rfile.read(min(length, 1 << 20))):
            length -= len(piece)
        return b"", True

    def read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def head(self, reply: Reply) -> bytes:
        lines = [f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}"]
        if reply.content_type is not None:
            lines.append(f"Content-Type: {reply.content_type}")
        lines.append(f"Content-Length: {len(reply.body)}")
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def abort(self) -> None:
        """Close with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def has_input(self) -> bool:
        """Whether there is something to read, and not the end."""
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:  # a reset
            return False

    def client_is_there(self, seconds: float) -> bool:
        """Wait that long at most; False once the client has closed or the server stops."""
        stopping = self.server.emulator.stopping
        end = time.monotonic() + seconds
        while not stopping.is_set():
            readable, _, _ = select.select([self.connection], [], [], max(0.0, min(0.1, end - time.monotonic())))
            if readable and not self.has_input():
                return False
            if time.monotonic() >= end:
                return True
        return False


def deliver_whole(connection: Connection, reply: Reply) -> bool:
    """Each delivery returns whether the connection can be used again."""
    connection.connection.sendall(connection.head(reply) + reply.body)
    return True


def deliver_reset(connection: Connection, reply: Reply) -> bool:
    connection.abort()
    return False


def deliver_truncated(connection: Connection, reply: Reply) -> bool:
    connection.connection.sendall(connection.head(reply) + reply.body[: int(reply.amount or 0)])
    return False


def deliver_reset_inside(connection: Connection, reply: Reply) -> bool:
    deliver_truncated(connection, reply)
    time.sleep(0.05)  # a reset overtakes what was not read yet
    return deliver_reset(connection, reply)


def deliver_trickle(connection: Connection, reply: Reply) -> bool:
    connection.connection.sendall(connection.head(reply))
    for at in range(len(reply.body)):
        if not connection.client_is_there(reply.amount or 0.0):
            return False
        connection.connection.sendall(reply.body[at : at + 1])
    return True


def deliver_silence(connection: Connection, reply: Reply) -> bool:
    while connection.client_is_there(3600):
        pass
    return False


DELIVERIES: dict[str, Callable[[Connection, Reply], bool]] = {
    "whole": deliver_whole,
    "reset": deliver_reset,
    "truncate": deliver_truncated,
    "reset_inside": deliver_reset_inside,
    "trickle": deliver_trickle,
    "silence": deliver_silence,
}


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, emulator: DataApiEmulator, port: int) -> None:
        self.emulator = emulator
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Connection)

    def close_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


# ----------------------------------------------------------------------------------------------- the emulator


@dataclass(frozen=True)
class Record:
    """A request; `command` is empty if it was not understood, `status` is 0 if there was no reply."""

    time: float
    command: str
    keyspace: str
    collection: str
    status: int
    token_ok: bool
    body_bytes: bytes = b""

    @property
    def body(self) -> str:
        return self.body_bytes.decode("utf-8", "replace")

    def as_json(self) -> str:
        names = ("time", "command", "keyspace", "collection", "status", "token_ok")
        return json.dumps({name: getattr(self, name) for name in names})


KNOBS: Final = (
    "page_size",
    "latency_s",
    "page_states",
    "estimate_factor",
    "create_s",
    "astra",
    "vectorize",
    "max_collections",
)


class DataApiEmulator:
    """The server, to be started and stopped, or used in a `with`.

    `token` None accepts any that is not empty. Every knob may be turned while it runs: KNOBS, `faults`,
    `planned_ids`. `page_states` is one of PAGE_STATES. With an `estimate_factor`, estimatedDocumentCount says that
    many times what there is: 0 is what a server says that does not know. `most_in_flight` is how many requests
    were being answered at one time, at most.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        keyspace: str = "default_keyspace",
        token: str | None = None,
        page_size: int = 50,
        latency_s: float = 0.0,
        page_states: str = "cassandra",
        estimate_factor: float | None = None,
        create_s: float = 0.0,
        astra: bool = False,
        vectorize: bool = False,
        max_collections: int | None = None,
        faults: Sequence[Mapping[str, Json]] = (),
        keep_bodies: bool = True,
        on_request: Callable[[Record], None] | None = None,
    ) -> None:
        self.database = Database()
        self.database.keyspaces[keyspace] = {}
        self.keyspace = keyspace
        self.required_token = token
        self.token = token or "AstraCS:emulator:0123456789abcdef"
        self.latency_s = latency_s
        self.create_s = create_s
        self.keep_bodies = keep_bodies
        self.on_request = on_request
        self.requests: list[Record] = []
        self.stopping = threading.Event()
        self.in_flight = self.most_in_flight = 0
        self._flying = threading.Lock()
        self.page_size = page_size
        self.page_states = page_states
        self.estimate_factor = estimate_factor
        self.astra = astra
        self.vectorize = vectorize
        self.max_collections = max_collections
        self.faults = faults
        self._port = port
        self._server: Server | None = None

    # life

    def start(self) -> DataApiEmulator:
        self.stopping.clear()
        self._server = Server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close every connection; the documents stay and `start` opens the same port again."""
        self.stopping.set()
        server, self._server = self._server, None  # a fault may be stopping it at the same time
        if server is not None:
            server.shutdown()
            server.server_close()
            server.close_connections()

    def go_down(self, seconds: float | None) -> None:
        """Stop, and be there again after so many seconds; None: not before `start`."""
        self.stop()
        if seconds is not None:
            time.sleep(seconds)
            self.start()

    def __enter__(self) -> DataApiEmulator:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    # knobs

    @property
    def page_size(self) -> int:
        return self.database.page_size

    @page_size.setter
    def page_size(self, value: int) -> None:
        self.database.page_size = value

    @property
    def page_states(self) -> str:
        return self.database.page_states

    @page_states.setter
    def page_states(self, value: str) -> None:
        if value not in PAGE_STATES:
            raise ValueError(f"unknown page states {value!r}; there are {', '.join(PAGE_STATES)}")
        self.database.page_states = value

    @property
    def estimate_factor(self) -> float | None:
        return self.database.estimate_factor

    @estimate_factor.setter
    def estimate_factor(self, value: float | None) -> None:
        self.database.estimate_factor = value

    @property
    def astra(self) -> bool:
        return self.database.astra

    @astra.setter
    def astra(self, value: bool) -> None:
        self.database.astra = value

    @property
    def vectorize(self) -> bool:
        return self.database.vectorize

    @vectorize.setter
    def vectorize(self, value: bool) -> None:
        self.database.vectorize = value

    @property
    def max_collections(self) -> int | None:
        return self.database.max_collections

    @max_collections.setter
    def max_collections(self, value: int | None) -> None:
        self.database.max_collections = value

    @property
    def planned_ids(self) -> list[Json]:
        """The `_id`s to give to the next documents that come without one."""
        return self.database.planned_ids

    @property
    def faults(self) -> list[Fault]:
        """The rules with their counts, `seen` and `fired`; set with dicts, which starts them anew."""
        return self._faults

    @faults.setter
    def faults(self, rules: Sequence[Mapping[str, Json]]) -> None:
        self._faults = [Fault.of(rule) for rule in rules]

    def add_fault(self, action: str, **rule: Json) -> Fault:
        made = Fault.of({"action": action, **rule})
        self._faults.append(made)
        return made

    @property
    def tables(self) -> table_api.Kit:
        """What makes, fills and reads tables behind the server's back."""
        from tests.emulators import tables as table_api

        return table_api.Kit(self.database)

    # documents, behind the server's back

    def create(self, keyspace: str, name: str, options: Mapping[str, Json] | None = None) -> Collection:
        """Make a collection, defaults filled in; or exactly as given if `lexical` and `rerank` are given."""
        with self.database.lock:
            given = json.loads(json.dumps(options or {}))
            resolved = given if "lexical" in given and "rerank" in given else resolve_options(self.database, given)
            return self.database.add(keyspace, name, resolved)

    def put(self, keyspace: str, collection: str, document_text: str | bytes) -> None:
        """Store that text as it is, unchecked; ValueError unless it begins with `{"_id":`."""
        text = document_text.encode() if isinstance(document_text, str) else document_text
        with self.database.lock:
            self.database.collection(keyspace, collection).put(planted_key(text), text)

    def documents(self, keyspace: str, collection: str) -> list[str]:
        """The stored texts in scan order."""
        with self.database.lock:
            return [row[2].decode() for row in self.database.collection(keyspace, collection).rows]

    def delete(self, keyspace: str, collection: str, document_id: Json) -> bool:
        """Delete by `_id`, given as Python's json would read it."""
        with self.database.lock:
            key = key_of(QUICK_PARSER.decode(json.dumps(document_id)))
            return self.database.collection(keyspace, collection).delete(key)

    def delete_all(self, keyspace: str, collection: str) -> None:
        with self.database.lock:
            self.database.collection(keyspace, collection).clear()

    def drop(self, keyspace: str, collection: str) -> None:
        with self.database.lock:
            self.database.keyspaces[keyspace].pop(collection, None)

    def make_index(self, collection: Collection, name: str) -> None:
        """One step of a createCollection."""
        with self.database.lock:
            collection.indexes.add(name)

    def missing_indexes(self, keyspace: str) -> dict[str, list[str]]:
        """The indexes that are missing, by collection, of those that lack any."""
        with self.database.lock:
            found = {name: each.missing_indexes for name, each in self.database.keyspaces[keyspace].items()}
            return {name: missing for name, missing in found.items() if missing}

    def collections(self, keyspace: str) -> dict[str, Json]:
        """Each collection's definition by its name."""
        with self.database.lock:
            return {name: each.options for name, each in sorted(self.database.keyspaces[keyspace].items())}

    def load(self, directory: str | os.PathLike[str], keyspace: str | None = None) -> None:
        """Make the collections of `findCollections.json` and fill them from `NAME.pages.jsonl[.gz]`."""
        folder = Path(directory)
        definitions = json.loads((folder / "findCollections.json").read_text("utf-8"))["status"]["collections"]
        for definition in definitions:
            made = self.database.add(keyspace or self.keyspace, definition["name"], definition["options"])
            for line in read_pages(folder, definition["name"]):
                for text in page_documents(line):
                    made.put(planted_key(text), text)
            made.loaded = len(made.rows)

    def generate(self, name: str, count: int, dimension: int = 384, *, arrays: bool = False) -> None:
        """Make a collection of that many documents with ids like UUIDs, the same each time; 0: without vectors."""
        import numpy

        vector = {"vector": {"dimension": dimension, "metric": "cosine"}} if dimension else {}
        made = self.create(self.keyspace, name, {**vector, "lexical": {"enabled": False}, "rerank": {"enabled": False}})
        source = random.Random(name)
        noise = numpy.random.default_rng(source.getrandbits(32))
        for number in range(count):
            document_id = str(uuid.UUID(int=source.getrandbits(128), version=4))
            floats = noise.normal(0, max(dimension, 1) ** -0.5, dimension)
            made.put(encode_key(ID_STRING, document_id), generated(document_id, number, floats, arrays=arrays))
        made.loaded = count

    # requests

    def reply_to(self, request: Request) -> Reply:
        with self._flying:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency_s:
                self.stopping.wait(self.latency_s)
            return self.recorded_reply(request)
        finally:
            with self._flying:
                self.in_flight -= 1

    def recorded_reply(self, request: Request) -> Reply:
        parts = path_parts(request.path)
        token = request.headers.get("token", "")
        token_ok = token == self.required_token if self.required_token else bool(token)
        command, reply = "", refuse_request(request, parts, token, token_ok)
        try:
            if reply is None:
                command, reply = self.reply_to_command(parts or [], request)
        except ConnectionAbortedError:
            command = "createCollection"  # the only one that looks whether its client is still there
            raise
        finally:
            keyspace, collection = (*(parts or []), "", "")[:2]
            body = request.body if self.keep_bodies else b""
            status = reply.status if reply is not None else 0
            self.record(Record(time.time(), command, keyspace, collection, status, token_ok, body))
        return reply

    def reply_to_command(self, parts: list[str], request: Request) -> tuple[str, Reply]:
        level = (DATABASE_LEVEL, KEYSPACE_LEVEL, COLLECTION_LEVEL)[len(parts)]
        keyspace, collection = (*parts, "", "")[:2]
        try:
            command, arguments = read_command(level, request.body)
        except Refusal as refusal:
            return "", error_reply(refusal)
        call = Call(self.database, keyspace, collection, arguments, request.client_is_there)
        exchange = Exchange(self, level, command, call, request.body)
        fault = self.next_fault(exchange) if self._faults else None
        try:
            return command, exchange.act() if fault is None else exchange.suffer(fault)
        except Refusal as refusal:
            return command, error_reply(refusal)
        except ConnectionAbortedError:
            raise  # the connection ends without a reply
        except Exception as error:  # as the server does; and aloud, for it is a bug of this file or of a rule
            traceback.print_exc()
            return command, error_reply(Refusal("UNEXPECTED_SERVER_ERROR", f"{type(error).__name__}: {error}"))

    def next_fault(self, exchange: Exchange) -> Fault | None:
        """The first rule whose turn has come; every rule that meets the request counts it as seen."""
        with self.database.lock:
            met = [fault for fault in self._faults if fault.meets(exchange)]
            for fault in met:
                fault.seen += 1
            due = next((fault for fault in met if fault.is_due()), None)
            if due is not None:
                due.fired += 1
            return due

    def record(self, record: Record) -> None:
        if self.on_request is None:
            self.requests.append(record)
        else:
            self.on_request(record)


def path_parts(path: str) -> list[str] | None:
    """[], [keyspace] or [keyspace, collection]; None if the server has nothing there."""
    parts = [part for part in path.removeprefix("/api/json").split("/") if part]
    return parts[1:] if parts and parts[0] == "v1" and len(parts) <= 3 else None


def refuse_request(request: Request, parts: list[str] | None, token: str, token_ok: bool) -> Reply | None:
    """The refusals before the body is looked at."""
    if parts is None:
        return Reply(404, content_type=None)
    if request.method != "POST":
        return Reply(405, content_type=None)
    if request.too_large:
        return Reply(413, content_type=None)
    if not token_ok:
        return error_reply(bad_token(token), 401, "application/json")
    if "json" not in request.headers.get("content-type", "application/json"):
        return Reply(415, content_type=None)
    return None


def bad_token(token: str) -> Refusal:
    if not token:
        return Refusal(
            "MISSING_AUTHENTICATION_TOKEN",
            "The command did not include an authorization token in the request headers.\n\nThe "
            "authorization header is: "
            "Token.\n\nResend the command using the correct authentication details.",
        )
    return Refusal(
        "UNAUTHENTICATED_REQUEST",
        "The command included an authorization token that is not valid.\n\n"
        "Resend the command using the correct authentication details.",
    )


def generated(document_id: str, number: int, floats: Any, *, arrays: bool) -> bytes:
    """A document as astrapy stores it, or with the vector as an array of decimal numbers."""
    vector = ""
    if arrays and floats.size:
        vector = f',"$vector":[{",".join([format(value, ".8f") for value in floats.tolist()])}]'
    elif floats.size:
        vector = f',"$vector":{{"$binary":"{base64.b64encode(floats.astype(">f4").tobytes()).decode()}"}}'
    return f'{{"_id":"{document_id}","title":"the title of document {number}"{vector}}}'.encode()


def planted_key(text: bytes) -> bytes:
    """The key of a document that was not checked: an `_id` the server would refuse counts as its own text."""
    if not text.startswith(b'{"_id":'):
        raise ValueError(f'a planted document begins with {{"_id":, not with {text[:40]!r}')
    end = text.find(b'"', 8)
    if text[7:8] == b'"' and b"\\" not in text[8:end]:
        return encode_key(ID_STRING, text[8:end].decode())
    decoded = text.decode("utf-8", "replace")
    document_id, end = json.JSONDecoder(parse_float=Number, parse_int=Number).raw_decode(decoded, 7)
    try:
        return key_of(document_id)
    except (Refusal, InvalidOperation):
        return encode_key(ID_STRING, decoded[7:end])


def read_pages(folder: Path, name: str) -> Iterator[str]:
    packed, unpacked = folder / f"{name}.pages.jsonl.gz", folder / f"{name}.pages.jsonl"
    if packed.exists():
        with gzip.open(packed, "rt", encoding="utf-8", newline="\n") as lines:
            yield from lines
    elif unpacked.exists():
        with unpacked.open(encoding="utf-8", newline="\n") as lines:
            yield from lines


def page_documents(line: str) -> Iterator[bytes]:
    """The text of each document of a `find` response."""
    decoder = json.JSONDecoder(parse_float=Number, parse_int=Number)
    at = line.index("[") + 1
    while line[at] != "]":
        _, end = decoder.raw_decode(line, at)
        yield line[at:end].encode()
        at = end + 1 if line[end] == "," else end


# ----------------------------------------------------------------------------------------------- command line


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulators.data_api", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--port", type=int, default=8181, help="0 takes a free one")
    parser.add_argument("--load", metavar="DIR", help="findCollections.json and NAME.pages.jsonl.gz")
    parser.add_argument("--generate", metavar="N", type=int, help="make a collection `docs` of N documents")
    parser.add_argument("--dimension", metavar="N", type=int, default=384, help="floats of each; 0: no vectors")
    parser.add_argument("--arrays", action="store_true", help="their vectors are arrays of numbers, not binary")
    parser.add_argument("--page-size", type=int, default=50)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="added to each request")
    parser.add_argument("--page-states", choices=list(PAGE_STATES), default="cassandra")
    parser.add_argument("--estimate-factor", type=float, help="how wrong estimatedDocumentCount is; 0: does not know")
    parser.add_argument("--create-s", type=float, default=0.0, help="what createCollection takes")
    parser.add_argument("--keyspace", default="default_keyspace")
    parser.add_argument("--token", help="the only one accepted; else any that is not empty")
    parser.add_argument("--astra", action="store_true", help="lexical and rerank are on unless a definition says no")
    parser.add_argument("--vectorize", action="store_true", help="embedding providers are available")
    parser.add_argument("--max-collections", type=int)
    parser.add_argument("--faults", metavar="FILE", help="a JSON list of fault rules")
    parser.add_argument("--log", metavar="FILE", help="one JSON object a request")
    parser.add_argument("--quiet", action="store_true", help="do not print requests")
    return parser.parse_args(argv)


def request_writer(options: argparse.Namespace) -> Callable[[Record], None]:
    log = Path(options.log).open("a", buffering=1, encoding="utf-8") if options.log else None  # noqa: SIM115
    lock = threading.Lock()

    def write(record: Record) -> None:
        if log is None and options.quiet:
            return
        with lock:
            if log is not None:
                log.write(record.as_json() + "\n")
            if not options.quiet:
                print(record.as_json(), file=sys.stderr)

    return write


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments_of(argv)
    emulator = DataApiEmulator(
        port=options.port,
        keyspace=options.keyspace,
        token=options.token,
        page_size=options.page_size,
        latency_s=options.latency_ms / 1000,
        page_states=options.page_states,
        estimate_factor=options.estimate_factor,
        create_s=options.create_s,
        astra=options.astra,
        vectorize=options.vectorize,
        max_collections=options.max_collections,
        faults=json.loads(Path(options.faults).read_text("utf-8")) if options.faults else (),
        keep_bodies=False,
        on_request=request_writer(options),
    )
    if options.load:
        emulator.load(options.load)
    if options.generate is not None:
        emulator.generate("docs", options.generate, options.dimension, arrays=options.arrays)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    with emulator:
        print(f"listening on {emulator.url}", flush=True)
        done.wait()
    return 0


if __name__ == "__main__":
    from tests.emulators.data_api import main as run_main  # the module that tables.py knows, not a second one

    raise SystemExit(run_main())
