"""A collection that changes while the product's own scan reads it, on servers honest and misleading: random histories.

`play(seed)` runs `CollectionScan` of astra_backup.py, whole, in one thread: `Turns` takes the place of its `Requests`
and decides whose turn it is, `Server` that of the Data API. Between any two pages documents are inserted, deleted,
replaced, spelt in another form. Whatever joins must hold every document that stayed throughout, and none twice.

What the proof cannot notice, and no history has, is a server whose chains leave documents out after a guess. So here a
chain goes on as it began, and where guesses go astray a document of each page of landmarks stays: without that, 3 of
200,000 histories joined and were wrong, all of them on a server that goes backwards or in circles.

VARIANTS are rules of the scan with one thing left out; a history exists that each of them gets wrong.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import random
import struct
import threading
import uuid
import zlib
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from astra_backup import (
    Chains,
    CollectionScan,
    Memory,
    NotJoinedError,
    Page,
    PageStateError,
    Readable,
    Reader,
    RequestError,
    ScanProgress,
    Target,
    document_key,
)

COUNT = 90  # ids that there are
TARGET = Target("http://127.0.0.1", "k", "hcd", "T")

# ------------------------------------------------------------------------------------- ids, in the server's order


def position(key: bytes) -> tuple[int, bytes]:
    """Where a key stands in the server's order."""
    return zlib.crc32(key), key


def state_of(key: bytes, course: int = 0) -> str:
    """The page state that ends at a key, built as Cassandra's is; its last byte tells how the chain goes on."""
    tail = b"\0\xf0\x7f\xff\xff\xcd" + bytes([course])
    return base64.b64encode(b"\0\0\0\1\1" + struct.pack(">i", len(key)) + key + tail).decode()


def key_in(state: str) -> bytes:
    """The key in such a state."""
    return base64.b64decode(state)[9:-7]


def spelt(text: str) -> list[msgspec.Raw]:
    """The documents with that id: as a string, as a UUID, as a UUID in other letters."""
    ids = (f'"{text}"', f'{{"$uuid":"{text}"}}', f'{{"$uuid":"{text.upper()}"}}')
    return [msgspec.Raw(f'{{"_id":{each}}}'.encode()) for each in ids]


_chance = random.Random(1)
TEXTS = sorted((str(uuid.UUID(int=_chance.getrandbits(128))) for _ in range(COUNT)), key=lambda t: position(t.encode()))
POSITIONS = [position(text.encode()) for text in TEXTS]
DOCUMENTS = [spelt(text) for text in TEXTS]
KEYS = [[document_key(document) for document in documents] for documents in DOCUMENTS]
SPELLINGS = [[bytes(document) for document in documents] for documents in DOCUMENTS]
NUMBERS = {bytes(document): number for number, documents in enumerate(DOCUMENTS) for document in documents}
CIRCLE = _chance.sample(range(COUNT), COUNT)
KNOWN = {text.encode(): number for number, text in enumerate(TEXTS)}


# ----------------------------------------------------------------------------------------------------- the server


class Guesses(Enum):
    """What a server makes of a state that it never gave, with a key that no document ever had."""

    POSITION = "a position, as Cassandra does"
    REFUSED = "refused"
    ANEW = "the first page, and what follows it"
    BACKWARDS = "what stands before the key, and on to the start"
    CIRCLE = "another order, and no end"


COURSES = list(Guesses)


@dataclass
class Server:
    """The server of one history, in the place of a DataApi."""

    chance: random.Random
    keys: list[list[bytes]]
    target: Target = TARGET
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        chance = self.chance
        self.size = chance.randint(1, 5)
        self.guesses = Guesses.POSITION if chance.random() < 0.7 else chance.choice(COURSES)
        self.misleads_always = chance.random() < 0.1  # also with the key of a document that is there
        self.churn = chance.choice((0, 0.1, 0.3, 0.6))
        self.oddity = chance.choice((0, 0, 0, 0.05, 0.2))  # how often a page is empty or comes twice
        self.full_page_leads_on = chance.random() < 0.5
        self.order = sorted(chance.sample(range(COUNT), chance.choice((4, 12, 25, 45, 80))))
        self.form = chance.choices(range(3), k=COUNT)
        self.stayed = set(self.order)
        self.first_pages: list[list[int]] = []
        self.kept: list[int] = []  # on pages that came before anything was guessed
        self.course: dict[str, Guesses] = {}  # of the states that were given: how their chains go on
        self.last_page: dict[str, list[int]] = {}  # with each of them
        self.ready: dict[str, Page | Exception] = {}

    # requests

    def find_page(self, _source: Readable, state: str | None, **_: Any) -> Page:
        """The page of a state, if it did not come before its turn."""
        found = self.ready.pop(state, None) if state else None
        if isinstance(found, Exception):
            raise found
        return found or self.answer(state)

    def read_ahead(self, state: str) -> None:
        """Answer now what will be taken later."""
        try:
            self.ready[state] = self.answer(state)
        except RequestError as error:
            self.ready[state] = error

    def answer(self, state: str | None) -> Page:
        """A page as the collection is now."""
        self.change()
        if state in self.last_page and self.chance.random() < self.oddity:
            return self.page(self.last_page.pop(state) if self.chance.random() < 0.5 else [], state)
        course = self.course_of(state)
        if course is Guesses.REFUSED:
            raise RequestError("no such place")
        if course is Guesses.ANEW:
            course, state = Guesses.POSITION, None
        numbers, follows = self.read(course, key_in(state) if state else b"")
        if state is not None and state not in self.course:
            self.first_pages.append(numbers)
        elif not self.first_pages:
            self.kept += numbers
        following = state_of(TEXTS[numbers[-1]].encode(), COURSES.index(course)) if numbers and follows else None
        if following:
            self.course[following] = course
            self.last_page[following] = numbers
        return self.page(numbers, following)

    def course_of(self, state: str | None) -> Guesses:
        if state is None:
            return Guesses.POSITION
        if state in self.course:
            return self.course[state]
        return self.guesses if self.misleads_always or key_in(state) not in KNOWN else Guesses.POSITION

    def read(self, course: Guesses, key: bytes) -> tuple[list[int], bool]:
        """The numbers of the documents of a page, and whether it leads on."""
        if course is Guesses.CIRCLE:
            return self.read_circle(key)
        if course is Guesses.BACKWARDS:
            at = bisect_left(self.order, bisect_left(POSITIONS, position(key)))
            return self.order[max(0, at - self.size) : at][::-1], at > self.size
        at = bisect_left(self.order, bisect_right(POSITIONS, position(key))) if key else 0
        numbers = self.order[at : at + self.size]
        is_full = len(numbers) == self.size
        return numbers, at + self.size < len(self.order) or (is_full and self.full_page_leads_on)

    def read_circle(self, key: bytes) -> tuple[list[int], bool]:
        at = CIRCLE.index(KNOWN[key]) + 1 if key in KNOWN else zlib.crc32(key) % COUNT
        live = set(self.order)
        found = [number for number in CIRCLE[at:] + CIRCLE[:at] if number in live]
        return found[: self.size], bool(found)

    def page(self, numbers: list[int], following: str | None) -> Page:
        forms = [(number, self.form[number]) for number in numbers]
        return Page([DOCUMENTS[n][form] for n, form in forms], [self.keys[n][form] for n, form in forms], following)

    # changes

    def change(self) -> None:
        """What others do to the collection between two pages."""
        while self.chance.random() < self.churn:
            self.chance.choice((self.insert, self.insert, self.delete, self.delete_some, self.replace))()

    def near(self) -> int:
        """Some number; often one close to where a chain began."""
        if self.first_pages and self.chance.random() < 0.5:
            page = self.chance.choice(self.first_pages)
            if page:
                return min(COUNT - 1, max(0, self.chance.choice(page) + self.chance.randint(-2, 2)))
        return self.chance.randrange(COUNT)

    def insert(self) -> None:
        number = self.near()
        at = bisect_left(self.order, number)
        if self.order[at : at + 1] != [number]:
            insort(self.order, number)
            self.form[number] = self.chance.randrange(3)

    def delete(self, number: int | None = None) -> None:
        number = self.near() if number is None else number
        at = bisect_left(self.order, number)
        if self.order[at : at + 1] == [number] and not self.is_last_landmark(number):
            del self.order[at]
            self.stayed.discard(number)

    def is_last_landmark(self, number: int) -> bool:
        """Whether it is all that is left of a page of landmarks, and the server misleads."""
        if self.guesses is Guesses.POSITION:
            return False
        live = set(self.order)
        return any(live & set(page) == {number} for page in (self.kept, *self.first_pages))

    def delete_some(self) -> None:
        """A first page, whole; or some that stand side by side."""
        if self.first_pages and self.chance.random() < 0.3:
            numbers = list(self.chance.choice(self.first_pages))
        else:
            at = bisect_left(self.order, self.near())
            numbers = self.order[at : at + self.chance.randint(1, 2 * self.size)]
        for number in numbers:
            self.delete(number)

    def replace(self) -> None:
        """The same key, spelt in another form; it may have been away for a moment."""
        number = self.near()
        self.form[number] = self.chance.randrange(3)
        if self.chance.random() < 0.5:
            self.stayed.discard(number)


# --------------------------------------------------------------------------------------------------- whose turn it is


class Turns:
    """In the place of Requests: one request at a time, in any order, chains at any speed."""

    def __init__(self, server: Server, workers: int) -> None:
        self.api = server
        self.workers = workers
        self.memory = Memory()
        self.chance = server.chance

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Each item once; the replies may arrive in another order than that in which they were made."""
        items = list(items)
        numbers = self.chance.sample(range(len(items)), len(items))
        for number in self.chance.sample(numbers, self.chance.randint(0, len(items))):
            if items[number] is not None:
                self.api.read_ahead(items[number])
        found = {number: function(items[number]) for number in numbers}
        return [found[number] for number in range(len(items))]

    def repeat(self, step: Callable[[Any], bool], items: Iterable[Any]) -> None:
        """Each item to its end: side by side, or some of them much faster than others."""
        active = self.chance.sample(list(items), len(items))  # type: ignore[arg-type]
        haste = self.chance.choice((1, 1, 3, 10))
        while active:
            at = int(self.chance.random() ** haste * len(active))
            if not step(active[at]):
                del active[at]


class Taken:
    """The sink."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def write(self, documents: list[msgspec.Raw]) -> None:
        self.numbers += [NUMBERS[bytes(document)] for document in documents]

    def abandon(self) -> None:
        pass


# -------------------------------------------------------------------------------------------------------- histories


class Outcome(Enum):
    JOINED = "joined"
    SERIAL = "serial"
    NOT_JOINED = "not joined"
    LOST = "place lost"


@dataclass
class History:
    """What came of a history. A violation: `missing` or `twice` hold something."""

    seed: int
    outcome: Outcome
    is_calm: bool  # an honest server, and nobody changed anything
    chains: int = 1
    missing: frozenset[int] = frozenset()
    twice: frozenset[int] = frozenset()

    @property
    def is_violation(self) -> bool:
        return bool(self.missing or self.twice)


@dataclass(frozen=True)
class Rules:
    """The product's classes, or what takes their place."""

    chains: type[Chains] = Chains
    scan: type[CollectionScan] = CollectionScan
    keys: list[list[bytes]] = field(default_factory=lambda: KEYS)


def play(seed: int, rules: Rules | None = None) -> History:
    """One history: the same for the same seed."""
    rules = rules or Rules()
    random.seed(seed)  # the product's guesses
    server = Server(random.Random(seed), rules.keys)
    taken, turns = Taken(), Turns(server, server.chance.randint(2, 4))
    scan = rules.scan(turns, Readable("c"), taken, ScanProgress(lambda: None, lambda _: None))  # type: ignore[arg-type]
    scan._chains = rules.chains()
    expected = server.chance.choice((None, 0, len(server.order), 3 * len(server.order)))
    is_calm = server.guesses is Guesses.POSITION and not server.churn
    try:
        chains = scan.run(expected)
    except NotJoinedError:
        return History(seed, Outcome.NOT_JOINED, is_calm)
    except PageStateError:
        return History(seed, Outcome.LOST, is_calm)
    counts = Counter(taken.numbers)
    return History(
        seed,
        Outcome.JOINED if chains > 1 else Outcome.SERIAL,
        is_calm,
        chains,
        frozenset(server.stayed - counts.keys()),
        frozenset(number for number, times in counts.items() if times > 1),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The scan's log is of no use here."""
    log = logging.getLogger("astra_backup")
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = False


def play_many(seeds: Iterable[int], rules: Rules | None = None) -> Iterator[History]:
    """One history after the other."""
    with quiet():
        for seed in seeds:
            yield play(seed, rules)


# ---------------------------------------------------------------------------------- the rules with one left out


class NoBarrier(CollectionScan):
    """The ordinary chain goes on while guesses are out, and what it read by then is not looked at again."""

    _ordinary: Reader | None = None
    _is_ended = False

    def _read_first_pages(self) -> Any:
        kept, self._ordinary = super()._read_first_pages()
        return kept, self._ordinary

    def _enter(self, state: str) -> Reader | None:
        if self._ordinary and random.random() < 0.6:
            self._advance(self._ordinary)
        return super()._enter(state)

    def _advance(self, reader: Reader) -> bool:
        if reader is not self._ordinary or not self._is_ended:
            is_more = super()._advance(reader)
            self._is_ended = self._is_ended or (reader is self._ordinary and not is_more)
            return is_more
        return False


class FirstIdsOnly(Chains):
    """Only the first document of a page is a landmark."""

    def keep(self, keys: list[bytes]) -> bool:
        return super().keep(keys[:1])

    def enter(self, keys: list[bytes]) -> int | None:
        return super().enter(keys[:1])


class KeptAreNoLandmarks(Chains):
    """The pages that were read before anything was guessed are forgotten."""

    def keep(self, keys: list[bytes]) -> bool:
        return True


class SharingIsNoMatter(Chains):
    """A guess whose first page shares a document with what was accepted before is accepted too."""

    def enter(self, keys: list[bytes]) -> int | None:
        if not keys:
            return None
        self._ends.append(None)
        self._landmarks.update(dict.fromkeys(keys, len(self._ends) - 1))
        return len(self._ends) - 1


class AnyMeetingIsGood(Chains):
    """Whether each chain was visited once is not looked at."""

    def are_joined(self) -> bool:
        return True


VARIANTS = {
    "no barrier": Rules(scan=NoBarrier),
    "only first ids are landmarks": Rules(FirstIdsOnly),
    "kept pages are no landmarks": Rules(KeptAreNoLandmarks),
    "guesses that share a document are not dropped": Rules(SharingIsNoMatter),
    "landmarks are compared as they are spelt": Rules(keys=SPELLINGS),
    "no proof that each chain was visited once": Rules(AnyMeetingIsGood),
}
