"""Level against time and size, and what is possible at most.

    python -m bench.compression [--mb 12]

The lines of the real `assets` collection as the product writes them, and of generated text.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy
from isal import igzip_threaded, isal_zlib
from zlib_ng import gzip_ng_threaded, zlib_ng

import astra_backup
from bench.backup import trial
from bench.data import Collection

PIECE_BYTES = 1 << 18
REAL_ASSETS = 300  # which the repository has; a document that comes again would make files small
GZIP = 31  # wbits for gzip's header
Row = dict[str, Any]
Compress = Callable[[bytes], bytes]


def single(make: Any, level: int) -> Compress:
    """Compress piece after piece, as the product does with pages."""

    def compress(content: bytes) -> bytes:
        compressor = make(level, wbits=GZIP)
        pieces = [compressor.compress(content[at : at + PIECE_BYTES]) for at in range(0, len(content), PIECE_BYTES)]
        return b"".join([*pieces, compressor.flush()])

    return compress


def threaded(module: Any, level: int, threads: int) -> Compress:
    """Compress with threads of the library's own; blocks that know nothing of each other."""

    def compress(content: bytes) -> bytes:
        target = io.BytesIO()
        with module.open(target, "wb", level, threads=threads) as file:
            for at in range(0, len(content), PIECE_BYTES):
                file.write(content[at : at + PIECE_BYTES])
        return target.getvalue()

    return compress


def gzip_make(level: int, wbits: int) -> Any:
    """zlib's, whose parameters have another order."""
    return zlib.compressobj(level, zlib.DEFLATED, wbits)


def compressors() -> Iterator[tuple[str, int, int, Compress]]:
    """Library, level, threads, function. Python's gzip has no threads."""
    both = len(os.sched_getaffinity(0))
    for level in range(4):
        yield "isal", level, 1, single(isal_zlib.compressobj, level)
    for level in range(4):
        yield "isal", level, both, threaded(igzip_threaded, level, both)
    for level in (1, 6, 9):
        yield "zlib-ng", level, 1, single(ng_make, level)
    for level in (1, 6, 9):
        yield "zlib-ng", level, both, threaded(gzip_ng_threaded, level, both)
    for level in (1, 6, 9):
        yield "gzip", level, 1, single(gzip_make, level)


def ng_make(level: int, wbits: int) -> Any:
    """zlib-ng's, likewise."""
    return zlib_ng.compressobj(level, zlib_ng.DEFLATED, wbits)


def lines_of(collection: Collection, limit: int) -> bytes:
    """The first bytes of a data file that is not compressed, up to the end of a line."""
    with trial([collection]) as there:
        there.ours(collection.name, options=("--no-compress",))
        with next(there.snapshot().glob("*.jsonl")).open("rb") as file:
            content = file.read(limit)
    return content[: content.rindex(b"\n") + 1]


def levels(contents: dict[str, bytes]) -> list[Row]:
    """Each compressor on each content."""
    rows = []
    for library, level, threads, compress in compressors():
        row: Row = {"library": library, "level": level, "threads": threads}
        for name, content in contents.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            packed = compress(content)
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            assert zlib.decompress(packed, GZIP) == content or threads > 1
            mb = len(content) / 1e6
            row[name] = {"ratio": len(packed) / len(content), "mb_s": mb / wall_s, "cpu_s_per_100mb": cpu_s / mb * 100}
        rows.append(row)
    return rows


def floats(lines: bytes) -> Row:
    """How many bits a float takes: as text, compressed, and at the least that was found."""
    arrays = [json.loads(line)["$vector"] for line in lines.splitlines()]
    texts = b"\n".join(line[slice(*vector_span(line))] for line in lines.splitlines())
    values = numpy.array([number for array in arrays for number in array], dtype="f4")
    planes = values.astype(">f4").view("u1").reshape(-1, 4).T
    entropies = [entropy(plane) for plane in planes]
    transposed = lzma.compress(planes.tobytes(), preset=9 | lzma.PRESET_EXTREME)
    packed = {
        f"text, isal level {astra_backup.GZIP_LEVEL} (the product)": single(
            isal_zlib.compressobj, astra_backup.GZIP_LEVEL
        )(texts),
        "text, gzip level 9": single(gzip_make, 9)(texts),
        "text, xz level 9": lzma.compress(texts, preset=9),
        "raw float32, gzip level 9": single(gzip_make, 9)(values.tobytes()),
        "byte planes of float32, xz level 9 extreme": transposed,
    }
    count = len(values)
    bits: Row = {"text": len(texts) * 8 / count, "float32": 32.0}
    bits |= {name: len(content) * 8 / count for name, content in packed.items()}
    return {"count": count, "plane_bits": entropies, "bits": bits | {"sum of the planes' entropies": sum(entropies)}}


def vector_span(line: bytes) -> tuple[int, int]:
    """Where the vector's text stands in a line."""
    start = line.index(b'"$vector":[') + len(b'"$vector":')
    return start, line.index(b"]", start) + 1


def entropy(plane: Any) -> float:
    """Order-0 entropy of bytes, in bits."""
    counts = numpy.bincount(plane, minlength=256)
    chances = counts[counts > 0] / counts.sum()
    return float(-(chances * numpy.log2(chances)).sum())


def measure(limit: int) -> Row:
    """Everything; `limit` in bytes of each content."""
    vectors = lines_of(Collection("assets", "assets", 384, REAL_ASSETS), limit)
    text = lines_of(Collection("text_1", "text", 1000, limit // 1000 + 1), limit)
    contents = {"vectors": vectors, "text": text}
    found: Row = {
        "product_level": astra_backup.GZIP_LEVEL,
        "mb": {name: len(each) / 1e6 for name, each in contents.items()},
    }
    return found | {"levels": levels(contents), "floats": floats(vectors)}


def tables(found: Row) -> Iterator[str]:
    """The lines of the two tables and what follows from them, in Markdown."""
    yield (
        f"{found['mb']['vectors']:.1f} MB of the real `assets` collection's lines, {found['mb']['text']:.1f} MB of"
        " lines of text. Size is the part of the original that is left; CPU is of one core, for 100 MB.\n"
    )
    yield (
        "| library | level | threads | vectors: size | MB/s | CPU s | text: size | MB/s | CPU s |\n" + "|---" * 9 + "|"
    )
    for row in found["levels"]:
        cells = [row["library"], str(row["level"]), str(row["threads"])]
        for name in ("vectors", "text"):
            one = row[name]
            cells += [f"{one['ratio']:.1%}", f"{one['mb_s']:,.0f}", f"{one['cpu_s_per_100mb']:.2f}"]
        yield f"| {' | '.join(cells)} |"
    yield "\n" + choice(found)
    yield f"\n{found['floats']['count']:,} float32 of those vectors:\n\n| form | bits a float |\n|---|---|"
    for name, bits in found["floats"]["bits"].items():
        yield f"| {name} | {bits:.2f} |"
    yield "\n" + nearness(found["floats"])


def choice(found: Row) -> str:
    """What the product's level costs and saves, against the others."""
    by_level = {(row["library"], row["level"]): row["vectors"] for row in found["levels"] if row["threads"] == 1}
    ours, common = by_level["isal", found["product_level"]], by_level["gzip", 6]
    best = min(by_level.values(), key=lambda row: row["ratio"])
    return (
        f"The product compresses with isal at level {found['product_level']}: on vectors"
        f" {common['cpu_s_per_100mb'] / ours['cpu_s_per_100mb']:.0f} times less CPU than gzip at level 6 for"
        f" {ours['ratio'] / common['ratio'] - 1:+.1%} bytes, and {ours['ratio'] / best['ratio'] - 1:+.1%} bytes against"
        " the smallest of all. It does so in a thread of its own for each collection, outside the interpreter lock, so"
        " threads of the library would only help where there is one collection and the server is faster than one core."
    )


def nearness(found: Row) -> str:
    """How far the product's text is from the least."""
    bits, planes = found["bits"], ", ".join(f"{each:.2f}" for each in found["plane_bits"])
    ours = next(value for name, value in bits.items() if "the product" in name)
    least = min(bits["byte planes of float32, xz level 9 extreme"], bits["sum of the planes' entropies"])
    return (
        f"The four bytes of a float32, each by itself, have {planes} bits of entropy: sign and most of the"
        f" exponent can be saved, the mantissa is noise. The least that was found is {least:.1f} bits a float. The"
        f" product takes {ours:.1f}, {ours / least - 1:.0%} more than that, and {ours / 32 - 1:+.0%} of raw float32;"
        " that is the price of a file that any tool can read."
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=12.0, help="of each content")
    options = parser.parse_args()
    print("\n".join(tables(measure(int(options.mb * 1e6)))))


if __name__ == "__main__":
    main()
