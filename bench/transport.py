"""CPU per 1,000 documents of reading pages: astrapy's `Collection.command` with an observer, and our sender.

    python -m bench.transport

1,000 documents of 1,536 floats, as binary and as arrays, from the emulator in a process of its own.
"""

from __future__ import annotations

import sys
import time

from bench.backup import trial
from bench.data import Collection

COUNT = 1000
FORMS = ("binary", "array")


def by_astrapy(url: str, name: str) -> int:
    """Page loop over `Collection.command`; an observer gets the text, from which documents are cut."""
    from astrapy import DataAPIClient
    from astrapy.api_options import APIOptions
    from astrapy.event_observers import Observer

    import astra_backup

    bodies: list[str] = []

    class Keep(Observer):
        """Keeps the body of each reply."""

        enabled = True

        def receive(self, event: object, *_: object, **__: object) -> None:
            """Take an event."""
            body = getattr(event, "body", None)
            if type(event).__name__ == "ObservableResponse" and body:
                bodies.append(body)

    client = DataAPIClient(environment="hcd", api_options=APIOptions(event_observers={"keep": Keep()}))
    collection = client.get_database(url, token="AstraCS:bench", keyspace="default_keyspace").get_collection(name)
    state: str | None = None
    count = 0
    while True:
        options: dict[str, object] = {"options": {"pageState": state}} if state else {}
        collection.command({"find": {"filter": {}, "projection": {"*": True}} | options})
        page = astra_backup.decode_reply(bodies.pop().encode()).page(astra_backup.Readable(name))
        count, state = count + len(page.documents), page.next_state
        if state is None:
            return count


def by_ours(url: str, name: str) -> int:
    """The product's own page loop."""
    import astra_backup

    target = astra_backup.Target(url, "default_keyspace", "hcd", "AstraCS:bench")
    api = astra_backup.DataApi(target, astra_backup.DataApi.READ_COMMANDS)
    state: str | None = None
    count = 0
    while True:
        page = api.find_page(astra_backup.Readable(name), state)
        count, state = count + len(page.documents), page.next_state
        if state is None:
            return count


def main() -> int:
    """Print the table."""
    with trial([Collection(form, form, 1536, COUNT) for form in FORMS]) as there:
        print("| vectors | astrapy's command, CPU s per 1,000 | our sender | ratio |\n|---|---|---|---|")
        for form in FORMS:
            best: dict[object, float] = {}
            for way in (by_astrapy, by_ours) * 3:
                way(there.api.url, form)
                started = time.process_time()
                assert way(there.api.url, form) == COUNT
                best[way] = min(best.get(way, 1e9), time.process_time() - started)
            ratio = best[by_astrapy] / best[by_ours]
            print(f"| {form} | {best[by_astrapy]:.3f} | {best[by_ours]:.3f} | {ratio:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
