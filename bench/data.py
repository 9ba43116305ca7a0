"""Collections to measure with: generated ones, and the real `assets`.

python -m bench.data DIR '[{"name": "docs", "kind": "binary", "size": 384, "count": 1000}]'
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.measure import ROOT, run

FULL_CATALOG = ROOT.parent / "shared" / "data_api" / "catalog"
CUT_CATALOG = ROOT / "tests" / "data" / "catalog"
REAL = FULL_CATALOG if FULL_CATALOG.is_dir() else CUT_CATALOG
PAGE_DOCUMENTS = 50
WORDS = 3000


@dataclass(frozen=True)
class Collection:
    """A collection to be generated.

    `kind` is `binary` or `array` (vectors of `size` floats, in that form), `text` (documents of `size` bytes without a
    vector) or `real` (the collection `assets`; `size` and `count` are what it has).
    """

    name: str
    kind: str
    size: int
    count: int


ONE = Collection("one", "binary", 3, 1)
"""What a command takes for this one is its start-up: every library is loaded for it."""


def generate(directory: Path, collections: list[Collection]) -> None:
    """Write page files for an emulator's `--load`, in a process of its own; `ONE` is added."""
    given = json.dumps([asdict(each) for each in [*collections, ONE]])
    run([sys.executable, "-m", "bench.data", str(directory), given], directory, {"PYTHONPATH": str(ROOT)})


def real_count() -> int:
    """How many documents the real collection has; the one in the repository is cut."""
    import orjson

    with gzip.open(REAL / "assets.pages.jsonl.gz") as pages:
        return sum(len(orjson.loads(page)["data"]["documents"]) for page in pages)


def write(directory: Path, collections: list[Collection]) -> None:
    """Write page files and the list of definitions."""
    definitions = []
    for each in collections:
        if each.kind == "real":
            shutil.copy(REAL / "assets.pages.jsonl.gz", directory / f"{each.name}.pages.jsonl.gz")
            found = json.loads((REAL / "findCollections.json").read_text())["status"]["collections"]
            definitions += [{**row, "name": each.name} for row in found if row["name"] == "assets"]
            continue
        vector = {} if each.kind == "text" else {"vector": {"dimension": each.size, "metric": "cosine"}}
        options = vector | {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
        definitions.append({"name": each.name, "options": options})
        with (directory / f"{each.name}.pages.jsonl").open("wb") as file:
            for page in pages_of(each):
                file.write(b'{"data":{"documents":[%b],"nextPageState":null}}\n' % b",".join(page))
    (directory / "findCollections.json").write_text(json.dumps({"status": {"collections": definitions}}))


def pages_of(collection: Collection) -> Iterator[list[bytes]]:
    """Yield the JSON texts of each page's documents; the same each time."""
    import numpy  # not above: who only wants to start us has to stay small

    seed = zlib.crc32(collection.name.encode())
    noise, chance = numpy.random.default_rng(seed), random.Random(seed)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(WORDS)]
    for start in range(0, collection.count, PAGE_DOCUMENTS):
        numbers = range(start, min(start + PAGE_DOCUMENTS, collection.count))
        if collection.kind == "text":
            yield [text_document(number, collection.size, words, chance) for number in numbers]
        else:
            # As a unit vector's elements are, which is what embeddings are.
            floats = noise.normal(0, collection.size**-0.5, (len(numbers), collection.size)).astype("f4")
            yield [vector_document(number, row, collection.kind) for number, row in zip(numbers, floats, strict=True)]


def vector_document(number: int, floats: Any, kind: str) -> bytes:
    """A document with a vector and a short title."""
    import orjson

    if kind == "binary":
        vector = b'{"$binary":"%b"}' % base64.b64encode(floats.astype(">f4").tobytes())
    else:
        vector = orjson.dumps(floats, option=orjson.OPT_SERIALIZE_NUMPY)
    return b'{"_id":"d%d","title":"the title of document %d","$vector":%b}' % (number, number, vector)


def text_document(number: int, size: int, words: list[str], chance: random.Random) -> bytes:
    """A document of about `size` bytes: sentences of words of which some are frequent."""
    chosen = (words[int(WORDS * chance.random() ** 3)] for _ in range(size // 6))
    text = " ".join(chosen)[: size - 60]
    return b'{"_id":"d%d","pages":%d,"is_new":true,"text":"%b"}' % (number, number % 700, text.encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]), [Collection(**each) for each in json.loads(sys.argv[2])])
