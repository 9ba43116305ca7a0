"""Collections to measure with, the same each time.

python -m bench.data DIR '[{"name": "docs", "kind": "binary", "size": 384, "count": 1000}]'
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import random
import sys
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import ROOT, run

ASSETS = ROOT / "tests" / "data" / "catalog" / "assets.pages.jsonl.gz"
PAGE_DOCUMENTS = 50
WORDS, TEXT_WORDS = 3_000, 200_000


@dataclass(frozen=True)
class Collection:
    """A collection to be generated.

    `kind` is `binary` or `array` (vectors of `size` floats, in that form), `text` (documents of `size` bytes without a
    vector) or `assets`: the real documents of that collection again and again, with ids of their own (`size` is 384).
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


def write(directory: Path, collections: list[Collection]) -> None:
    """Write page files and the list of definitions."""
    definitions = []
    for each in collections:
        vector = {} if each.kind == "text" else {"vector": {"dimension": each.size, "metric": "cosine"}}
        options = vector | {"lexical": {"enabled": False}, "rerank": {"enabled": False}}
        definitions.append({"name": each.name, "options": options})
        with (directory / f"{each.name}.pages.jsonl").open("wb") as file:
            for page in pages_of(each):
                file.write(b'{"data":{"documents":[%b],"nextPageState":null}}\n' % b",".join(page))
    (directory / "findCollections.json").write_text(json.dumps({"status": {"collections": definitions}}))


def pages_of(collection: Collection) -> Iterator[list[bytes]]:
    """Yield the JSON texts of each page's documents; the same each time."""
    source, made = random.Random(collection.name), documents_of(collection)
    while texts := list(itertools.islice(made, PAGE_DOCUMENTS)):
        yield [b'{"_id":"%b",%b}' % (document_id(source), text) for text in texts]


def document_id(source: random.Random) -> bytes:
    """A random UUID."""
    return str(uuid.UUID(int=source.getrandbits(128), version=4)).encode()


def documents_of(collection: Collection) -> Iterator[bytes]:
    """Yield the text of each document's members but its `_id`."""
    if collection.kind == "assets":
        return itertools.islice(itertools.cycle(real_assets()), collection.count)
    if collection.kind == "text":
        return texts_of(collection)
    return vectors_of(collection)


def real_assets() -> list[bytes]:
    """The documents of the real collection that the repository has, each without its `_id` and braces."""
    import msgspec

    texts: list[bytes] = []
    with gzip.open(ASSETS) as pages:
        for page in pages:
            data = msgspec.json.decode(page, type=dict[str, dict[str, msgspec.Raw]])["data"]
            texts += map(bytes, msgspec.json.decode(data["documents"], type=list[msgspec.Raw]))
    return [text[text.index(b",") + 1 : -1] for text in texts]


def vectors_of(collection: Collection) -> Iterator[bytes]:
    """A vector and a short title. Elements are as a unit vector's are, which is what embeddings are."""
    import numpy  # not above: who only wants to start us has to stay small
    import orjson

    noise = numpy.random.default_rng(zlib.crc32(collection.name.encode()))
    for number in range(collection.count):
        floats = noise.normal(0, collection.size**-0.5, collection.size).astype("f4")
        vector = orjson.dumps(floats, option=orjson.OPT_SERIALIZE_NUMPY)
        if collection.kind == "binary":
            vector = b'{"$binary":"%b"}' % base64.b64encode(floats.astype(">f4").tobytes())
        yield b'"title":"the title of document %d","$vector":%b' % (number, vector)


def texts_of(collection: Collection) -> Iterator[bytes]:
    """Pieces of one long text, of words of which some are frequent; gzip looks back 32 KB and sees no repetition."""
    chance = random.Random(collection.name)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(WORDS)]
    whole = " ".join(words[int(WORDS * chance.random() ** 3)] for _ in range(TEXT_WORDS)).encode()
    whole *= 1 + -(-collection.size // len(whole))
    for number in range(collection.count):
        start = chance.randrange(len(whole) - collection.size)
        text = whole[start : start + collection.size - 100]
        yield b'"pages":%d,"is_new":true,"text":"%b"' % (number % 700, text)


if __name__ == "__main__":
    write(Path(sys.argv[1]), [Collection(**each) for each in json.loads(sys.argv[2])])
