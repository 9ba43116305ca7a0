"""What each stage of a backup and of a verification costs: CPU microseconds a document, nothing beside it.

    python -m bench.stages [--floats 1536] [--kind binary]

Indented rows are parts of the row above. Sums leave out what Python's threads cost each other.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from isal import igzip, isal_zlib

import astra_backup
import restore
from bench.data import PAGE_DOCUMENTS, Collection, pages_of

PAGES = 40
ROUNDS = 7
_T = TypeVar("_T")
_S = TypeVar("_S")


def stage(name: str, function: Callable[[_S], _T], items: Sequence[_S]) -> list[_T]:
    """Print what a function costs for each document of the items, which hold PAGES pages; return what it returned."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        results = [function(item) for item in items]
        best = min(best, time.process_time() - started)
    print(f"| {name} | {best / PAGES / PAGE_DOCUMENTS * 1e6:.1f} |")
    return results


def each(function: Callable[[Any], _T]) -> Callable[[Sequence[Any]], list[_T]]:
    """The function for every document of a page."""
    return lambda page: [function(document) for document in page]


def read_page(body: bytes) -> list[bytes]:
    """A reply's documents."""
    page = astra_backup.decode_reply(body).page(astra_backup.Readable("docs"))
    return list(map(bytes, page.documents))


def compress(text: bytes) -> bytes:
    """As a data file's writer does it."""
    compressor = isal_zlib.compressobj(astra_backup.GZIP_LEVEL, wbits=astra_backup.GZIP_WBITS)
    return bytes(compressor.compress(text) + compressor.flush())


def decompress(content: bytes) -> None:
    """As a data file's reader does it."""
    with igzip.open(io.BytesIO(content), "rb") as stream:  # type: ignore[no-untyped-call]
        while stream.read(astra_backup.READ_BYTES):
            pass


def backup(pages: list[bytes]) -> bytes:
    """The stages from a reply's bytes to the file's; returns the lines."""
    texts = stage("cut a page", read_page, pages)
    documents = stage("parse", each(astra_backup.Document.parse), texts)
    encoded = stage("encode, parsing included", each(astra_backup.encode_document), texts)
    vectors = [[document["$vector"] for document in page] for page in documents]
    arrays = stage("- vectors to text", each(astra_backup.encode_vector), vectors)
    floats = [[orjson.loads(text) for text, _ in page] for page in arrays]
    import numpy

    rows = [numpy.array(page, dtype="f4") for page in floats]
    stage("-- orjson alone", each(lambda row: orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)), rows)  # type: ignore[arg-type]
    stats = astra_backup.DataStats()
    stage("count", each(lambda row: stats.count(*row)), encoded)
    joined = stage("join", lambda page: b"\n".join([*(line for line, _ in page), b""]), encoded)
    stage("CRC-32", lambda text: isal_zlib.crc32(text, 0), joined)
    files = stage("compress", compress, joined)
    stage("SHA-256 of the file", lambda content: hashlib.sha256(content).digest(), files)
    return b"".join(joined)


def check(text: bytes) -> None:
    """The stages from the file's bytes to what they hold."""
    compressed = compress(text)
    stage("decompress", decompress, [compressed])
    stage(
        "find the lines",
        lambda content: deque(restore.iter_lines(io.BytesIO(content), compressed=False), 0),
        [text],
    )
    lines = [text.split(b"\n")[:-1]]
    parsed = stage("parse", each(astra_backup.Document.parse), lines)
    stage("SHA-256 of the lines", each(lambda line: hashlib.sha256(line).digest()), lines)
    stage("SHA-256 of the file", lambda content: hashlib.sha256(content).digest(), [compressed])
    stage("decode", each(astra_backup.Document.decoded), parsed)
    for name, content, is_gzip in (("compressed", compressed, True), ("not compressed", text, False)):
        read = lambda data: restore.DataReader(io.BytesIO(data), compressed=is_gzip).check()  # noqa: B023, E731
        stage(f"all: verify, {name}", read, [content])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floats", type=int, default=1536)
    parser.add_argument("--kind", choices=("binary", "array", "assets"), default="binary")
    arguments = parser.parse_args()
    made = Collection("docs", arguments.kind, arguments.floats, PAGES * PAGE_DOCUMENTS)
    pages = [b'{"data":{"documents":[%b],"nextPageState":null}}' % b",".join(page) for page in pages_of(made)]
    print("| backup | µs a document |\n|---|---|")
    text = backup(pages)
    print("\n| verify | µs a document |\n|---|---|")
    check(text)


if __name__ == "__main__":
    main()
