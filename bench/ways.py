"""What the product is compared with, each in a process of its own; what it finds out is printed as JSON.

python -m bench.ways plain URL COLLECTION PATH COUNT    astrapy's cursor, json.dumps with a default, gzip.open
python -m bench.ways bare URL COLLECTION                ask for page after page with httpx, keep nothing
python -m bench.ways writers URL SNAPSHOT N             N threads post batches that are ready in memory
"""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KEYSPACE = "default_keyspace"


def plain(url: str, collection: str, path: str, count: str) -> dict[str, Any]:
    """The plain way to back up; stops after `count` documents, since it is slow."""
    from astrapy import DataAPIClient
    from astrapy.api_options import APIOptions, SerdesOptions

    plain_types = APIOptions(serdes_options=SerdesOptions(custom_datatypes_in_reading=False))
    client = DataAPIClient(environment="hcd", api_options=plain_types)
    found = client.get_database(url, token="AstraCS:bench", keyspace=KEYSPACE).get_collection(collection)
    documents, started, cpu_s = 0, time.monotonic(), time.process_time()
    with gzip.open(path, "wt") as file:
        for document in itertools.islice(found.find({}, projection={"*": True}), int(count)):
            file.write(json.dumps(document, default=str) + "\n")
            documents += 1
    assert documents == int(count)
    return {"seconds": time.monotonic() - started, "cpu_s": time.process_time() - cpu_s}


def bare(url: str, collection: str) -> dict[str, Any]:
    """The limit: pages are received and thrown away."""
    import httpx

    state, started, cpu_s = None, time.monotonic(), time.process_time()
    find: dict[str, object] = {"filter": {}, "projection": {"*": True}}
    with httpx.Client(headers={"Token": "AstraCS:bench"}) as client:
        while True:
            options: dict[str, object] = {"options": {"pageState": state}} if state else {}
            reply = client.post(f"{url}/v1/{KEYSPACE}/{collection}", json={"find": find | options})
            marker = reply.content.rindex(b'"nextPageState":')
            state = json.loads(b"{" + reply.content[marker:].rstrip(b"}") + b"}")["nextPageState"]
            if state is None:
                return {"seconds": time.monotonic() - started, "cpu_s": time.process_time() - cpu_s}


def writers(url: str, snapshot: str, at_once: str) -> dict[str, Any]:
    """The limit of a restore: batches as the product makes them are only posted, and nothing is checked but errors."""
    import httpx

    import restore

    with restore.open_snapshot(Path(snapshot)).open("docs.jsonl.gz") as stream:
        texts = [document.text() for _, _, document in restore.DataReader(stream, compressed=True)]
    head, tail = b'{"insertMany":{"documents":[', b'],"options":{"ordered":false,"returnDocumentResponses":true}}}'
    batches = [head + b",".join(batch) + tail for batch in restore.make_batches(texts)]
    client = httpx.Client(headers={"Token": "AstraCS:bench", "Content-Type": "application/json"}, timeout=60)
    options = {"vector": {"dimension": 384, "metric": "cosine"}, "lexical": {"enabled": False}}
    create = {"createCollection": {"name": "plain", "options": options}}
    client.post(f"{url}/v1/{KEYSPACE}", json=create).raise_for_status()
    started = time.monotonic()
    with ThreadPoolExecutor(int(at_once)) as pool:
        for reply in pool.map(lambda body: client.post(f"{url}/v1/{KEYSPACE}/plain", content=body), batches):
            assert b'"errors"' not in reply.content
    seconds = time.monotonic() - started
    client.post(f"{url}/v1/{KEYSPACE}", json={"deleteCollection": {"name": "plain"}}).raise_for_status()
    return {"seconds": seconds, "documents": len(texts)}


WAYS: dict[str, Callable[..., dict[str, Any]]] = {"plain": plain, "bare": bare, "writers": writers}

if __name__ == "__main__":
    print(json.dumps(WAYS[sys.argv[1]](*sys.argv[2:])))
