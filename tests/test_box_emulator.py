"""The Box emulator, driven by the real boxsdk: what is true here is what the other tests build on."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from box_sdk_gen import (
    BoxAPIError,
    BoxClient,
    BoxSDKError,
    CreateFolderParent,
    PreflightFileUploadCheckParent,
    UpdateFileByIdParent,
    UploadFileAttributes,
    UploadFileAttributesParentField,
    UploadFileVersionAttributes,
)

from tests.emulators.box import ACTIONS, MIB, ROUTES, BoxEmulator
from tests.support import connect

ROOT = Path(__file__).resolve().parents[1]
LARGE = 25 * 1000 * 1000
DATA = random.Random(20260616).randbytes(LARGE)


# --- Helpers ------------------------------------------------------------------------------------------------


@pytest.fixture
def box() -> Iterator[BoxEmulator]:
    """An emulator that, when the test is over, must have seen and made no mistake."""
    with BoxEmulator() as emulator:
        assert emulator.validator, "nothing would be validated"
        yield emulator
    assert not emulator.errors
    assert not emulator.violations
    assert not emulator.reply_violations


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def digest(data: bytes) -> str:
    return "sha=" + base64.b64encode(hashlib.sha1(data).digest()).decode()


def upload(client: BoxClient, folder_id: str, name: str, data: bytes, **more: Any) -> Any:
    attributes = UploadFileAttributes(name=name, parent=UploadFileAttributesParentField(id=folder_id))
    more.setdefault("content_md_5", sha1(data))
    files = client.uploads.upload_file(
        attributes,
        io.BytesIO(data),
        file_file_name="blob",
        file_content_type="application/octet-stream",
        **more,
    )
    return files.entries[0]


def put_part(client: BoxClient, session: Any, offset: int, data: bytes = DATA, **more: Any) -> Any:
    piece = data[offset : offset + session.part_size]
    place = f"bytes {offset}-{offset + len(piece) - 1}/{len(data)}"
    call = client.chunked_uploads.upload_file_part_by_url
    return call(
        session.session_endpoints.upload_part,
        io.BytesIO(more.get("piece", piece)),
        more.get("digest", digest(piece)),
        more.get("place", place),
    ).part


def put_all(client: BoxClient, session: Any, data: bytes = DATA) -> list[Any]:
    return [put_part(client, session, at, data) for at in range(0, len(data), session.part_size)]


def commit(client: BoxClient, session: Any, parts: list[Any], data: bytes = DATA, **more: Any) -> Any:
    call = client.chunked_uploads.create_file_upload_session_commit_by_url
    return call(session.session_endpoints.commit, parts, digest(data), **more)


def new_session(box: BoxEmulator, client: BoxClient, name: str = "a.zip") -> Any:
    return client.chunked_uploads.create_file_upload_session(box.folder_id, LARGE, name)


def refused(call: Callable[[], object]) -> tuple[int, str | None]:
    """The status and the code with which Box refuses a call."""
    with pytest.raises(BoxAPIError) as caught:
        call()
    return caught.value.response_info.status_code, caught.value.response_info.code


def small(box: BoxEmulator, part_size: int = MIB) -> BoxEmulator:
    """The emulator with sessions for small files."""
    box.min_session_size, box.part_size = 1, part_size
    return box


# --- Token, account, folders --------------------------------------------------------------------------------


def test_token_and_me(box: BoxEmulator) -> None:
    """The Client Credentials Grant gives a token that shows the service account."""
    me = connect(box).users.get_user_me()
    assert re.fullmatch(r"AutomationUser_\w+[-\w]*@boxdevedition\.com", me.login)
    assert me.max_upload_size == box.max_upload_size
    assert (me.space_amount, me.space_used) == (box.space_amount, 0)
    assert [request.api for request in box.requests] == ["token", "me"]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"client_secret": "wrong", "enterprise_id": "999999"}, "invalid_client"),
        ({"client_id": "wrong", "enterprise_id": "999999"}, "invalid_client"),
        ({"enterprise_id": "1"}, "invalid_grant"),
        ({"user_id": "1"}, "invalid_grant"),
        ({"client_secret": "emulator-client-secret"}, "invalid_grant"),
    ],
)
def test_token_refused(box: BoxEmulator, config: dict[str, str], error: str) -> None:
    """Wrong credentials and subjects are refused in OAuth's own shape."""
    with pytest.raises(BoxAPIError) as caught:
        connect(box, **config).users.get_user_me()
    assert caught.value.response_info.status_code == 400
    assert caught.value.response_info.body["error"] == error
    assert caught.value.response_info.code is None


def test_token_of_a_user(box: BoxEmulator) -> None:
    """A token is given for the user's id as well."""
    assert connect(box, user_id=box.user_id).users.get_user_me().id == box.user_id


def test_app_not_authorized(box: BoxEmulator) -> None:
    """An app the admin has not authorised gets no token."""
    box.app_authorized = False
    with pytest.raises(BoxAPIError) as caught:
        connect(box).users.get_user_me()
    assert caught.value.response_info.body["error"] == "unauthorized_client"


def test_token_expires(box: BoxEmulator) -> None:
    """A token that has outlived its time is a 401 with a challenge, and the SDK fetches another."""
    box.token_lifetime_s = 0.05
    client = connect(box)
    client.users.get_user_me()
    time.sleep(0.06)
    with pytest.raises(BoxAPIError) as caught:
        client.users.get_user_me()
    assert caught.value.response_info.status_code == 401
    assert 'error="invalid_token"' in caught.value.response_info.headers["WWW-Authenticate"]
    box.token_lifetime_s = 60
    patient = connect(box, attempts=3)
    box.faults = [{"api": "me", "action": "expire_token"}]
    assert patient.users.get_user_me().id == box.user_id


def test_no_secret_is_recorded(box: BoxEmulator) -> None:
    """The records of requests hold neither the token nor the secret."""
    connect(box).users.get_user_me()
    text = json.dumps([vars(request) for request in box.requests])
    assert "Bearer" not in text
    assert box.client_secret not in text


def test_folder(box: BoxEmulator) -> None:
    """A folder shows its name and what may be done in it."""
    client = connect(box)
    folder = client.folders.get_folder_by_id(box.folder_id, fields=["name", "permissions"])
    assert folder.permissions.can_upload
    box.can_upload = False
    folder = client.folders.get_folder_by_id(box.folder_id, fields=["name", "permissions"])
    assert not folder.permissions.can_upload
    denied = (403, "access_denied_insufficient_permissions")
    assert refused(lambda: upload(client, box.folder_id, "a.zip", b"a")) == denied
    assert refused(lambda: new_session(box, client)) == denied


def test_folder_not_shared(box: BoxEmulator) -> None:
    """A folder that is not shared with the service account is a 404 that names it."""
    box.folder_shared = False
    client = connect(box)
    with pytest.raises(BoxAPIError) as caught:
        client.folders.get_folder_by_id(box.folder_id)
    info = caught.value.response_info
    assert (info.status_code, info.code) == (404, "not_found")
    assert f"d_{box.folder_id}" in info.context_info["errors"][0]["message"]
    assert refused(lambda: upload(client, box.folder_id, "a.zip", b"a")) == (404, "not_found")
    assert upload(client, "0", "a.zip", b"a").parent.id == "0"


def test_create_folder(box: BoxEmulator) -> None:
    """A folder can be made, its name being taken for files too."""
    client = connect(box)
    made = client.folders.create_folder("Old", CreateFolderParent(id=box.folder_id))
    assert upload(client, made.id, "a.zip", b"a").name == "a.zip"
    assert box.files(made.id)["a.zip"].content == b"a"
    with pytest.raises(BoxAPIError) as caught:
        upload(client, box.folder_id, "OLD", b"a")
    assert caught.value.response_info.context_info["conflicts"]["type"] == "folder"


# --- Listing ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> Iterator[BoxEmulator]:
    """An emulator with 2,500 files."""
    with BoxEmulator() as emulator:
        for number in range(2500):
            emulator.add_file(f"{number:04d}.zip", b"%d" % number)
        yield emulator


def test_items_by_marker(full: BoxEmulator) -> None:
    """A listing by marker gives each of 2,500 files once, in three pages."""
    full.usemarker = "any"
    client, names, marker, pages = connect(full), [], None, 0
    while pages == 0 or marker:
        page = client.folders.get_folder_items(
            full.folder_id, fields=["name", "size", "sha1"], usemarker=True, marker=marker, limit=1000
        )
        names += [entry.name for entry in page.entries]
        assert all(entry.size and entry.sha_1 for entry in page.entries)
        marker, pages = page.next_marker, pages + 1
    assert (sorted(names), pages) == ([f"{number:04d}.zip" for number in range(2500)], 3)


@pytest.mark.parametrize("knob", ["ignored", "lowercase"])
def test_items_without_marker(full: BoxEmulator, knob: str) -> None:
    """Where the SDK's capital True is not honoured, the listing goes by offset."""
    full.usemarker = knob
    client, names = connect(full), []
    for offset in range(0, 2500, 1000):
        page = client.folders.get_folder_items(full.folder_id, usemarker=True, offset=offset, limit=1000)
        assert (page.total_count, page.next_marker) == (2500, None)
        names += [entry.name for entry in page.entries]
    assert names == [f"{number:04d}.zip" for number in range(2500)]


def test_items_are_mini(full: BoxEmulator) -> None:
    """Without fields an entry has its mini representation, which has no size."""
    entry = connect(full).folders.get_folder_items(full.folder_id, limit=1).entries[0]
    assert (entry.size, entry.sha_1) == (None, sha1(b"0"))
    named = connect(full).folders.get_folder_items(full.folder_id, limit=1, fields=["name"]).entries[0]
    assert (named.name, named.sha_1) == ("0000.zip", None)


def test_items_limits(full: BoxEmulator) -> None:
    """A page has at most 1000 entries; an offset beyond 9999 and a broken marker are refused."""
    client = connect(full)
    full.usemarker = "any"
    assert len(client.folders.get_folder_items(full.folder_id, limit=5000).entries) == 1000
    listing = client.folders.get_folder_items
    assert refused(lambda: listing(full.folder_id, offset=10_000)) == (400, "bad_request")
    assert refused(lambda: listing(full.folder_id, usemarker=True, marker="?"))[0] == 400


# --- Single uploads -----------------------------------------------------------------------------------------


def test_upload(box: BoxEmulator) -> None:
    """A single upload stores the bytes and answers with their size and SHA-1."""
    entry = upload(connect(box), box.folder_id, "a.zip", b"hello")
    assert (entry.size, entry.sha_1, entry.etag) == (5, sha1(b"hello"), "0")
    assert box.files()["a.zip"].content == b"hello"
    assert connect(box).users.get_user_me().space_used == 5


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 700_001])
def test_upload_of_any_size(box: BoxEmulator, size: int) -> None:
    """A multipart body is taken apart to the byte, wherever the boundaries fall."""
    data = (b"\r\n--" + DATA)[:size]
    entry = upload(connect(box), box.folder_id, "a.zip", data)
    assert entry.sha_1 == sha1(data)
    assert box.files()["a.zip"].content == data


def test_upload_with_default_part_headers(box: BoxEmulator) -> None:
    """The empty file name that the SDK sends by default is accepted."""
    attributes = UploadFileAttributes(name="a", parent=UploadFileAttributesParentField(id=box.folder_id))
    connect(box).uploads.upload_file(attributes, io.BytesIO(b"x"))
    assert box.files()["a"].content == b"x"


def test_bad_digest(box: BoxEmulator) -> None:
    """A content that is not what content-md5 says is refused and not kept."""
    client = connect(box)
    call = lambda: upload(client, box.folder_id, "a.zip", b"hello", content_md_5=sha1(b"other"))  # noqa: E731
    assert refused(call) == (400, "bad_digest")
    assert not box.files()
    assert not list(box._work.iterdir())


@pytest.mark.parametrize("shape", ["object", "array"])
def test_conflict(box: BoxEmulator, shape: str) -> None:
    """A name that is taken, in any case, is a 409 that carries the file: one object, or an array."""
    box.conflicts_shape = shape
    client = connect(box)
    first = upload(client, box.folder_id, "a.zip", b"hello")
    with pytest.raises(BoxAPIError) as caught:
        upload(client, box.folder_id, "A.ZIP", b"other")
    info = caught.value.response_info
    assert (info.status_code, info.code) == (409, "item_name_in_use")
    conflict = info.context_info["conflicts"]
    assert isinstance(conflict, list) == (shape == "array")
    conflict = conflict[0] if shape == "array" else conflict
    assert (conflict["type"], conflict["id"], conflict["sha1"]) == ("file", first.id, sha1(b"hello"))


def test_version(box: BoxEmulator) -> None:
    """A new version replaces the content and keeps the old one; a stale etag is a 412."""
    client = connect(box)
    first = upload(client, box.folder_id, "a.zip", b"one")
    attributes = UploadFileVersionAttributes(name="a.zip")

    def again(data: bytes, etag: str) -> Any:
        send = client.uploads.upload_file_version
        return send(first.id, attributes, io.BytesIO(data), if_match=etag, content_md_5=sha1(data)).entries[0]

    second = again(b"two", "0")
    assert (second.id, second.etag, second.sha_1) == (first.id, "1", sha1(b"two"))
    assert refused(lambda: again(b"three", "0")) == (412, "precondition_failed")
    past = client.file_versions.get_file_versions(first.id).entries
    assert [version.sha_1 for version in past] == [sha1(b"one")]
    assert client.downloads.download_file(first.id, version=past[0].id).read() == b"one"
    client.file_versions.delete_file_version_by_id(first.id, past[0].id)
    assert [version.blob.sha1 for version in box.files()["a.zip"].versions] == [sha1(b"two")]


@pytest.mark.parametrize("name", ["a/b", "a:b", "a ", ".", "..", "a\\b", "a\nb"])
def test_name_invalid(box: BoxEmulator, name: str) -> None:
    """Names that Box does not take are refused."""
    assert refused(lambda: upload(connect(box), box.folder_id, name, b"")) == (400, "item_name_invalid")


def test_name_too_long(box: BoxEmulator) -> None:
    """A name has at most 255 characters."""
    client = connect(box)
    assert upload(client, box.folder_id, "x" * 255, b"").name
    assert refused(lambda: upload(client, box.folder_id, "x" * 256, b"")) == (400, "item_name_too_long")


def test_limits(box: BoxEmulator) -> None:
    """The single upload, the account's file size and its space have limits of their own."""
    client = connect(box)
    box.max_single_size = 10
    assert refused(lambda: upload(client, box.folder_id, "a", b"x" * 11)) == (413, "request_entity_too_large")
    box.max_upload_size = 9
    too_large = (403, "file_size_limit_exceeded")
    assert refused(lambda: upload(client, box.folder_id, "a", b"x" * 10)) == too_large
    box.max_upload_size, box.space_amount = 10**9, 5
    assert refused(lambda: upload(client, box.folder_id, "a", b"x" * 6)) == (403, "storage_limit_exceeded")
    assert refused(lambda: new_session(box, client)) == (403, "storage_limit_exceeded")


def test_preflight(box: BoxEmulator) -> None:
    """A preflight finds conflicts and limits before a byte is sent."""
    client = connect(box)
    parent = PreflightFileUploadCheckParent(id=box.folder_id)
    check = lambda name, size: client.uploads.preflight_file_upload_check(name=name, size=size, parent=parent)  # noqa: E731
    assert check("a.zip", 10).upload_url == f"{box.upload_url}/2.0/files/content"
    box.add_file("a.zip")
    assert refused(lambda: check("a.zip", 10)) == (409, "item_name_in_use")
    assert refused(lambda: check("b.zip", 10**13 + 1)) == (403, "file_size_limit_exceeded")
    assert any("int32" in text for text in box.known_deviations)


def test_pipe_is_refused(box: BoxEmulator) -> None:
    """A stream of unknown length is sent without Content-Length, which is a 411."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    attributes = UploadFileAttributes(name="a", parent=UploadFileAttributesParentField(id=box.folder_id))
    with pytest.raises(BoxAPIError) as caught:
        connect(box).uploads.upload_file(attributes, Pipe(b"x" * 1000))
    assert caught.value.response_info.code == "length_required"


# --- Chunked uploads ----------------------------------------------------------------------------------------


def test_chunked(box: BoxEmulator) -> None:
    """A file of 25 MB goes up in three parts and is exactly what was sent."""
    client = connect(box)
    session = new_session(box, client)
    assert (session.part_size, session.total_parts, session.num_parts_processed) == (8 * MIB, 3, 0)
    parts = put_all(client, session)
    assert [part.sha_1 for part in parts] == [sha1(DATA[at : at + 8 * MIB]) for at in range(0, LARGE, 8 * MIB)]
    listed = client.chunked_uploads.get_file_upload_session_parts_by_url(session.session_endpoints.list_parts)
    assert [part.part_id for part in listed.entries] == [part.part_id for part in parts]
    status = client.chunked_uploads.get_file_upload_session_by_id(session.id)
    assert status.num_parts_processed == 3
    entry = commit(client, session, parts).entries[0]
    assert (entry.name, entry.size, entry.sha_1) == ("a.zip", LARGE, sha1(DATA))
    assert box.files()["a.zip"].content == DATA
    assert not box.sessions
    assert refused(lambda: commit(client, session, parts)) == (404, "not_found")
    assert len(list(box._work.iterdir())) == 1


def test_chunked_in_parallel(box: BoxEmulator) -> None:
    """Parts may come in any order, several at once."""
    small(box)
    client = connect(box)
    session = new_session(box, client)
    offsets = list(range(0, LARGE, MIB))[::-1]
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda at: put_part(client, session, at), offsets))
    assert commit(client, session, parts).entries[0].sha_1 == sha1(DATA)


def test_upload_big_file(box: BoxEmulator) -> None:
    """The SDK's own helper is content with the emulator."""
    done = connect(box).chunked_uploads.upload_big_file(io.BytesIO(DATA), "a.zip", LARGE, box.folder_id)
    assert done.sha_1 == sha1(DATA)


def test_session_too_small(box: BoxEmulator) -> None:
    """Under 20,000,000 bytes there is no session."""
    create = connect(box).chunked_uploads.create_file_upload_session
    assert refused(lambda: create(box.folder_id, 19_999_999, "a")) == (400, "file_size_too_small")
    assert create(box.folder_id, 20_000_000, "a").total_parts == 3


def test_session_conflict(box: BoxEmulator) -> None:
    """A session for a name that is taken is a 409; one for that file makes a version of it."""
    box.add_file("A.zip", b"old")
    client = connect(box)
    with pytest.raises(BoxAPIError) as caught:
        new_session(box, client)
    found = caught.value.response_info.context_info["conflicts"]
    session = client.chunked_uploads.create_file_upload_session_for_existing_file(found["id"], LARGE)
    entry = commit(client, session, put_all(client, session), if_match=found["etag"]).entries[0]
    assert (entry.id, entry.etag) == (found["id"], "1")
    assert [version.blob.sha1 for version in box.files()["A.zip"].versions] == [sha1(b"old"), sha1(DATA)]


def test_commit_with_stale_etag(box: BoxEmulator) -> None:
    """A stale etag is found at commit, and the session stays open."""
    box.add_file("a.zip", b"old")
    client = connect(box)
    file = box.files()["a.zip"]
    session = client.chunked_uploads.create_file_upload_session_for_existing_file(file.id, LARGE)
    parts = put_all(client, session)
    box.add_file("a.zip", b"newer")
    assert refused(lambda: commit(client, session, parts, if_match="0")) == (412, "precondition_failed")
    assert list(box.sessions) == [session.id]
    assert box.files()["a.zip"].content == b"newer"


def test_commit_when_the_name_was_taken_meanwhile(box: BoxEmulator) -> None:
    """A name that was taken after the session was opened is a 409 at commit."""
    client = connect(box)
    session = new_session(box, client)
    parts = put_all(client, session)
    box.add_file("a.zip", b"other")
    assert refused(lambda: commit(client, session, parts)) == (409, "item_name_in_use")


def test_part_is_immutable(box: BoxEmulator) -> None:
    """A part that is stored cannot be sent again; by another rule that ends the session."""
    client = connect(box)
    session = new_session(box, client)
    put_part(client, session, 0)
    assert refused(lambda: put_part(client, session, 0)) == (409, "conflict")
    put_part(client, session, 8 * MIB)
    box.part_conflict = "upload_failed"
    assert refused(lambda: put_part(client, session, 0)) == (410, "upload_failed")
    assert refused(lambda: put_part(client, session, 16 * MIB)) == (410, "upload_failed")


def test_part_sent_twice_at_once(box: BoxEmulator) -> None:
    """Of two requests with the same part at the same time one is refused."""
    client = connect(box)
    session = new_session(box, client)
    barrier = threading.Barrier(2)

    def send(_: int) -> int:
        barrier.wait()
        try:
            put_part(client, session, 0)
        except BoxAPIError as error:
            return error.response_info.status_code
        return 200

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(send, range(2))) == [200, 409]


def test_part_digest(box: BoxEmulator) -> None:
    """A part that is not what its digest says is refused and not stored; SHA-512 is a digest too."""
    client = connect(box)
    session = new_session(box, client)
    assert refused(lambda: put_part(client, session, 0, digest=digest(b"other"))) == (400, "bad_digest")
    box.digest_status = 412
    assert refused(lambda: put_part(client, session, 0, digest=digest(b"other")))[0] == 412
    assert not box.sessions[session.id].parts
    strong = base64.b64encode(hashlib.sha512(DATA[: 8 * MIB]).digest()).decode()
    assert put_part(client, session, 0, digest=f"sha-512={strong}").sha_1 == sha1(DATA[: 8 * MIB])


@pytest.mark.parametrize(
    ("place", "size", "status"),
    [
        ("bytes 1-8388608/25000000", 8 * MIB, 400),
        ("bytes 0-99/25000000", 100, 400),
        ("bytes 0-8388607/25000000", 100, 400),
        ("bytes 0-8388607/25000001", 8 * MIB, 416),
        ("bytes 25165824-33554431/25000000", 8 * MIB, 416),
        ("0-8388607", 8 * MIB, 400),
    ],
)
def test_part_range(box: BoxEmulator, place: str, size: int, status: int) -> None:
    """A part off the grid is a 400, one outside the file a 416."""
    client = connect(box)
    session = new_session(box, client)
    piece = DATA[:size]
    call = lambda: put_part(client, session, 0, place=place, piece=piece, digest=digest(piece))  # noqa: E731
    assert refused(call)[0] == status


def test_commit_of_missing_parts(box: BoxEmulator) -> None:
    """A commit needs all parts stored and listed as they are."""
    client = connect(box)
    session = new_session(box, client)
    parts = [put_part(client, session, 0), put_part(client, session, 8 * MIB)]
    assert refused(lambda: commit(client, session, parts)) == (400, "parts_mismatch")
    parts.append(put_part(client, session, 16 * MIB))
    assert refused(lambda: commit(client, session, parts[1:])) == (400, "parts_mismatch")
    assert refused(lambda: commit(client, session, parts, DATA[1:])) == (400, "bad_digest")
    assert commit(client, session, parts[::-1]).entries[0].sha_1 == sha1(DATA)


def test_commit_202(box: BoxEmulator) -> None:
    """A commit is answered 202 while the parts are processed; the SDK waits, or returns None."""
    box.commit_202_times, box.retry_after = 2, "0"
    client = connect(box)
    session = new_session(box, client)
    parts = put_all(client, session)
    assert commit(client, session, parts) is None
    assert commit(connect(box, attempts=5), session, parts).entries[0].sha_1 == sha1(DATA)
    assert [request.status for request in box.calls("commit")] == [202, 202, 201]


def test_abort(box: BoxEmulator) -> None:
    """An aborted session is gone with all it stored."""
    client = connect(box)
    session = new_session(box, client)
    put_part(client, session, 0)
    client.chunked_uploads.delete_file_upload_session_by_url(session.session_endpoints.abort)
    assert not box.sessions
    assert not list(box._work.iterdir())
    assert refused(lambda: put_part(client, session, 8 * MIB)) == (404, "not_found")
    box.gone_status = 410
    assert refused(lambda: put_part(client, session, 8 * MIB)) == (410, "session_expired")


def test_session_expires(box: BoxEmulator) -> None:
    """A session past its time is a 410; an id that is none is a 400."""
    box.session_lifetime_s = -1
    client = connect(box)
    session = new_session(box, client)
    assert refused(lambda: put_part(client, session, 0)) == (410, "session_expired")
    call = client.chunked_uploads.get_file_upload_session_by_id
    assert refused(lambda: call("nonsense")) == (400, "invalid_upload_session_id")


# --- Downloads, deletion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, DATA[:1000]),
        ("bytes=100-199", DATA[100:200]),
        ("bytes=900-", DATA[900:1000]),
        ("bytes=-10", DATA[990:1000]),
        ("bytes=990-5000", DATA[990:1000]),
        ("nonsense", DATA[:1000]),
    ],
)
def test_download(box: BoxEmulator, wanted: str | None, expected: bytes) -> None:
    """A download is redirected and honours its range."""
    file = box.add_file("a.zip", DATA[:1000])
    assert connect(box).downloads.download_file(file.id, range=wanted).read() == expected
    assert [request.status for request in box.requests][-2:] == [302, 200 if expected == DATA[:1000] else 206]


def test_download_past_the_end(box: BoxEmulator) -> None:
    """A range past the end is a 416 that tells the size."""
    file = box.add_file("a.zip", b"abc")
    with pytest.raises(BoxAPIError) as caught:
        connect(box).downloads.download_file(file.id, range="bytes=3-")
    assert caught.value.response_info.status_code == 416
    assert caught.value.response_info.headers["Content-Range"] == "bytes */3"


def test_download_resumes(box: BoxEmulator) -> None:
    """A transfer that is cut twice is completed with ranges."""
    file = box.add_file("a.zip", DATA[: 3 * MIB])
    box.faults = [{"api": "download", "action": "truncate", "at": MIB, "times": 2}]
    client, got, tries = connect(box), io.BytesIO(), 0
    while got.tell() < 3 * MIB:
        tries += 1
        stream = client.downloads.download_file(file.id, range=f"bytes={got.tell()}-")
        try:
            while chunk := stream.read(65536):
                got.write(chunk)
        except requests.exceptions.ChunkedEncodingError:
            continue
    assert tries in (3, 4)
    assert got.getvalue() == DATA[: 3 * MIB]


def test_delete(box: BoxEmulator) -> None:
    """A deleted file goes to the trash, counts against the quota, and frees its name."""
    client = connect(box)
    file = box.add_file("a.zip", b"abc")
    assert refused(lambda: client.files.delete_file_by_id(file.id, if_match="7")) == (
        412,
        "precondition_failed",
    )
    client.files.delete_file_by_id(file.id, if_match="0")
    assert refused(lambda: client.files.delete_file_by_id(file.id)) == (404, "trashed")
    assert box.files() == {}
    assert [trashed.id for trashed in box.trash()] == [file.id]
    assert upload(client, box.folder_id, "a.zip", b"new").id != file.id
    assert client.users.get_user_me().space_used == 6
    assert client.trashed_files.get_trashed_file_by_id(file.id).name == "a.zip"
    client.trashed_files.delete_trashed_file_by_id(file.id)
    assert client.users.get_user_me().space_used == 3
    box.can_delete = False
    again = box.files()["a.zip"].id
    denied = (403, "access_denied_insufficient_permissions")
    assert refused(lambda: client.files.delete_file_by_id(again)) == denied


def test_rename(box: BoxEmulator) -> None:
    """A file can be renamed and moved, unless the name is taken."""
    client = connect(box)
    file = box.add_file("a.zip", b"abc")
    box.add_file("b.zip", b"def")
    assert refused(lambda: client.files.update_file_by_id(file.id, name="B.zip")) == (409, "item_name_in_use")
    assert client.files.update_file_by_id(file.id, name="c.zip").name == "c.zip"
    client.files.update_file_by_id(file.id, parent=UpdateFileByIdParent(id="0"))
    assert (list(box.files()), list(box.files("0"))) == (["b.zip"], ["c.zip"])
    assert client.files.get_file_by_id(file.id, fields=["name"]).name == "c.zip"


# --- Faults -------------------------------------------------------------------------------------------------


def test_fault_status(box: BoxEmulator) -> None:
    """A status comes with its headers and body, as often as the rule says, and the SDK gets over it."""
    box.faults = [{"api": "me", "action": "status", "status": 429, "retry_after": 0, "skip": 1, "times": 2}]
    client = connect(box, attempts=5)
    for _ in range(3):
        client.users.get_user_me()
    assert [request.status for request in box.calls("me")] == [200, 429, 429, 200, 200]
    assert box.calls("me")[1].code == "rate_limit_exceeded"


def test_fault_every(box: BoxEmulator) -> None:
    """A rule can hit every third request for ever, to operations it names or to all."""
    rule = {"api": ["me", "folder"], "action": "status", "status": 503, "every": 3, "times": None}
    box.faults = [rule, {"api": "*", "action": "status", "status": 418, "contains": "GET /2.0/folders/7"}]
    client = connect(box)
    statuses = []
    for _ in range(7):
        try:
            client.users.get_user_me()
            statuses.append(200)
        except BoxAPIError as error:
            statuses.append(error.response_info.status_code)
    assert statuses == [503, 200, 200, 503, 200, 200, 503]
    assert refused(lambda: client.folders.get_folder_by_id("7"))[0] == 418


def test_fault_retry_after_date(box: BoxEmulator) -> None:
    """A Retry-After that is a date makes the SDK raise a ValueError."""
    box.faults = [{"api": "me", "action": "status", "status": 503, "retry_after": "date"}]
    with pytest.raises(ValueError, match="could not convert"):
        connect(box, attempts=2).users.get_user_me()


def test_fault_body(box: BoxEmulator) -> None:
    """A status may have any headers and body."""
    challenge = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
    box.faults = [{"api": "me", "action": "status", "status": 403, "headers": challenge, "body": ""}]
    with pytest.raises(BoxAPIError) as caught:
        connect(box).users.get_user_me()
    assert caught.value.response_info.body == {}
    assert "insufficient_scope" in caught.value.response_info.headers["WWW-Authenticate"]


@pytest.mark.parametrize("after", [0, 1000, MIB])
def test_fault_reset(box: BoxEmulator, after: int) -> None:
    """A reset before acting is a connection error, and nothing is stored."""
    box.faults = [{"api": "part", "action": "reset", "after_bytes": after}]
    client = connect(box)
    session = new_session(box, client)
    with pytest.raises(BoxSDKError) as caught:
        put_part(client, session, 0)
    assert isinstance(caught.value.error, requests.ConnectionError)
    assert not box.sessions[session.id].parts
    assert put_part(client, session, 0)


def test_fault_reset_after(box: BoxEmulator) -> None:
    """A lost reply leaves the file there: the SDK's retry meets a 409 with our own SHA-1."""
    box.faults = [{"api": "upload", "action": "reset_after"}]
    with pytest.raises(BoxAPIError) as caught:
        upload(connect(box, attempts=3), box.folder_id, "a.zip", b"hello")
    info = caught.value.response_info
    assert (info.status_code, info.context_info["conflicts"]["sha1"]) == (409, sha1(b"hello"))
    assert [request.status for request in box.calls("upload")] == [0, 409]


def test_fault_stored_500(box: BoxEmulator) -> None:
    """A part is stored though a 500 was answered, as list_parts shows."""
    box.faults = [{"api": "part", "action": "stored_500"}]
    client = connect(box)
    session = new_session(box, client)
    assert refused(lambda: put_part(client, session, 0)) == (500, "internal_server_error")
    listed = client.chunked_uploads.get_file_upload_session_parts(session.id).entries
    assert [(part.offset, part.size) for part in listed] == [(0, 8 * MIB)]


def test_fault_accepted_202(box: BoxEmulator) -> None:
    """A commit is answered 202 for some time, whatever the number of tries."""
    small(box).retry_after = "0"
    rule = {"api": "commit", "action": "accepted_202", "for_s": 0.1, "times": None}
    box.faults = [rule]
    client = connect(box)
    session = client.chunked_uploads.create_file_upload_session(box.folder_id, MIB, "a")
    parts, answer, tries = put_all(client, session, DATA[:MIB]), None, 0
    while answer is None:
        answer, tries = commit(client, session, parts, DATA[:MIB]), tries + 1
        time.sleep(0.01)
    assert tries > 2
    assert answer.entries[0].size == MIB
    assert rule == {"api": "commit", "action": "accepted_202", "for_s": 0.1, "times": None}


@pytest.mark.parametrize("status", [404, 410])
def test_fault_session_gone(box: BoxEmulator, status: int) -> None:
    """A session vanishes in the middle."""
    box.faults = [{"api": "part", "action": "session_gone", "skip": 1, "status": status}]
    client = connect(box)
    session = new_session(box, client)
    put_part(client, session, 0)
    assert refused(lambda: put_part(client, session, 8 * MIB))[0] == status
    assert not box.sessions
    assert refused(lambda: put_part(client, session, 8 * MIB))[0] == 404


def test_fault_session_conflict(box: BoxEmulator) -> None:
    """A session may be opened and be answered with a 409 that carries it."""
    box.faults = [{"api": "session", "action": "session_conflict"}]
    with pytest.raises(BoxAPIError) as caught:
        new_session(box, connect(box))
    info = caught.value.response_info
    assert (info.code, [info.context_info["session"]["id"]]) == ("session_conflict", list(box.sessions))


def test_fault_wrong_sha1(box: BoxEmulator) -> None:
    """The answer to a part, and to an upload, may carry a SHA-1 that is wrong."""
    box.faults = [{"api": ["part", "upload"], "action": "wrong_sha1", "times": 2}]
    client = connect(box)
    assert upload(client, box.folder_id, "b", b"x").sha_1 == "0" * 40
    session = new_session(box, client)
    assert put_part(client, session, 0).sha_1 == "0" * 40
    assert box.sessions[session.id].parts[0].blob.sha1 == sha1(DATA[: 8 * MIB])


def test_fault_corrupt(box: BoxEmulator) -> None:
    """A flipped bit in what is stored, or downloaded, shows in nothing but its SHA-1."""
    box.faults = [{"api": ["upload", "part", "commit", "download"], "action": "corrupt", "times": None}]
    client = connect(box)
    entry = upload(client, box.folder_id, "b", b"hello")
    assert box.files()["b"].content == b"iello"
    assert entry.sha_1 == sha1(b"iello")
    assert client.downloads.download_file(entry.id).read() == b"hello"
    session = new_session(box, client)
    assert put_part(client, session, 0).sha_1 == box.sessions[session.id].parts[0].blob.sha1 != sha1(DATA[: 8 * MIB])


def test_fault_corrupt_commit(box: BoxEmulator) -> None:
    """A file may be spoilt at commit: only its SHA-1 in the answer tells."""
    box.faults = [{"api": "commit", "action": "corrupt"}]
    client = connect(box)
    session = new_session(box, client)
    entry = commit(client, session, put_all(client, session)).entries[0]
    assert entry.sha_1 == sha1(box.files()["a.zip"].content) != sha1(DATA)


def test_fault_html(box: BoxEmulator) -> None:
    """A page of HTML looks to the SDK like a folder without entries."""
    box.faults = [{"api": "items", "action": "html"}]
    assert connect(box).folders.get_folder_items(box.folder_id).entries is None


def test_fault_list_json(box: BoxEmulator) -> None:
    """An error whose body is a JSON list makes the SDK raise an AttributeError."""
    box.faults = [{"api": "items", "action": "list_json"}]
    with pytest.raises(AttributeError):
        connect(box).folders.get_folder_items(box.folder_id)


def test_fault_expire_token(box: BoxEmulator) -> None:
    """All tokens can become invalid at once; the SDK sends the part again with a new one."""
    client = connect(box, attempts=3)
    session = new_session(box, client)
    box.faults = [{"api": "part", "action": "expire_token"}]
    assert put_part(client, session, 0)
    assert [request.status for request in box.calls("part")] == [401, 200]


def test_fault_delay_and_latency(box: BoxEmulator) -> None:
    """One answer, or all of them, can be late."""
    client = connect(box)
    client.users.get_user_me()
    box.faults = [{"api": "me", "action": "delay", "seconds": 0.2}]
    began = time.monotonic()
    client.users.get_user_me()
    assert time.monotonic() - began >= 0.2
    box.latency_s = 0.1
    began = time.monotonic()
    client.users.get_user_me()
    assert time.monotonic() - began >= 0.1


def test_fault_trickle(box: BoxEmulator) -> None:
    """A body can come in drops."""
    file = box.add_file("a.zip", b"x" * 10)
    box.faults = [{"api": "download", "action": "trickle", "chunk": 2, "pause_s": 0.05}]
    began = time.monotonic()
    assert connect(box).downloads.download_file(file.id).read() == b"x" * 10
    assert time.monotonic() - began >= 0.2


def test_fault_silence(box: BoxEmulator) -> None:
    """Silence runs into the client's read timeout."""
    box.faults = [{"api": "me", "action": "silence"}]
    with pytest.raises(BoxSDKError) as caught:
        connect(box, read_ms=300).users.get_user_me()
    assert isinstance(caught.value.error, requests.exceptions.ReadTimeout)


def test_fault_truncate_json(box: BoxEmulator) -> None:
    """An answer of JSON can be cut as well, which the SDK lets through bare."""
    box.faults = [{"api": "me", "action": "truncate"}]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        connect(box).users.get_user_me()


def test_fault_ignore_range(box: BoxEmulator) -> None:
    """A server that ignores the range sends everything, and the SDK does not tell."""
    file = box.add_file("a.zip", b"hello")
    box.faults = [{"api": "download", "action": "ignore_range"}]
    assert connect(box).downloads.download_file(file.id, range="bytes=4-").read() == b"hello"


def test_flood_sends_more_than_was_asked_for(box: BoxEmulator) -> None:
    """`flood` answers anything with as many zeros as it is told."""
    box.faults = [{"api": "me", "action": "flood", "bytes": 1000}]
    reply = requests.get(f"{box.url}/2.0/users/me", timeout=5)
    assert (reply.status_code, reply.content) == (200, bytes(1000))


def test_every_action_is_tested() -> None:
    """Each scripted fault is used in this file, and each is described."""
    text = Path(__file__).read_text()
    assert [name for name in ACTIONS if f'"action": "{name}"' not in text] == []
    assert all(action.__doc__ for action in ACTIONS.values())


def test_unknown_action_is_noticed() -> None:
    """A rule that names no action is an error of the test, and is kept as one."""
    with BoxEmulator(faults=[{"api": "me", "action": "nonsense"}]) as box:
        assert refused(lambda: connect(box).users.get_user_me()) == (500, "emulator_failed")
        assert "nonsense" in box.errors[0]


# --- Box's specification ------------------------------------------------------------------------------------


@pytest.fixture
def unwatched() -> Iterator[BoxEmulator]:
    """An emulator that may see mistakes."""
    with BoxEmulator() as emulator:
        assert emulator.validator
        yield emulator


def test_normal_flow_conforms(unwatched: BoxEmulator) -> None:
    """What a backup and a restore send conforms to Box's specification, and so do the answers."""
    client = connect(unwatched)
    client.users.get_user_me()
    client.folders.get_folder_by_id(unwatched.folder_id, fields=["name", "permissions"])
    single = upload(client, unwatched.folder_id, "b.zip", b"hello")
    session = new_session(unwatched, client)
    parts = put_all(client, session)
    client.chunked_uploads.get_file_upload_session_parts_by_url(session.session_endpoints.list_parts, limit=1000)
    commit(client, session, parts)
    client.folders.get_folder_items(unwatched.folder_id, fields=["name", "size"], usemarker=True, limit=1000)
    client.downloads.download_file(single.id, range="bytes=0-1").read()
    client.files.delete_file_by_id(single.id, if_match=single.etag)
    assert unwatched.violations == []
    assert unwatched.reply_violations == []
    assert unwatched.known_deviations == ["items: query usemarker: 'True' is no boolean"]


def test_violations_are_noticed(unwatched: BoxEmulator) -> None:
    """Missing headers, wrong types, unknown names and unknown paths are noted, and served all the same."""
    client = connect(unwatched)
    token = client.auth.refresh_token(network_session=client.network_session).access_token
    headers = {"Authorization": f"Bearer {token}"}
    session = new_session(unwatched, client)
    part = session.session_endpoints.upload_part
    assert requests.put(part, data=b"x", headers=headers, timeout=5).status_code == 400
    body = {"folder_id": unwatched.folder_id, "file_size": "x", "file_name": "a", "more": 1}
    create = f"{unwatched.upload_url}/2.0/files/upload_sessions"
    assert requests.post(create, json=body, headers=headers, timeout=5).json()["code"] == "invalid_file_size"
    query = {"limit": "2000", "usemarker": "1", "page": "2"}
    items = f"{unwatched.url}/2.0/folders/{unwatched.folder_id}/items"
    assert requests.get(items, params=query, headers=headers, timeout=5).status_code == 200
    assert requests.get(f"{unwatched.url}/2.0/nonsense", headers=headers, timeout=5).status_code == 404
    assert requests.post(items, headers=headers, timeout=5).status_code == 405
    assert sorted(unwatched.violations) == [
        "GET /2.0/nonsense: is no operation of Box",
        f"POST /2.0/folders/{unwatched.folder_id}/items: is no operation of Box",
        "items: query limit: 2000 is greater than the maximum of 1000",
        "items: query page: is not in the specification",
        "items: query usemarker: '1' is no boolean",
        "part: header content-range: is required",
        "part: header digest: is required",
        "session: body file_size: 'x' is not of type 'integer'",
        "session: body: 'more' is not in the specification",
    ]


def test_validation_is_on() -> None:
    """The emulator of every test validates: the description is in the clone, the library in the pins."""
    with BoxEmulator() as box:
        assert box.validator is not None
        assert box.state()["validated"] is True


def test_demo_needs_no_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that only the tests install, the emulator serves, and says that it does not validate."""
    monkeypatch.setitem(sys.modules, "openapi_schema_validator", None)
    with BoxEmulator() as box:
        connect(box).folders.get_folder_items(box.folder_id, usemarker=True)
        assert (box.known_deviations, box.violations) == ([], [])
        assert box.state()["validated"] is False


def test_routes_are_in_the_specification(unwatched: BoxEmulator) -> None:
    """Every operation that says so is described by Box."""
    assert unwatched.validator
    known = [route for route in ROUTES if unwatched.validator._operation(route)]
    assert known == [route for route in ROUTES if route.specified]


# --- The program --------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The emulator as a process of its own, with 1 MiB parts, and its address."""
    faults = tmp_path / "faults.json"
    faults.write_text('[{"api": "me", "action": "status", "status": 503, "times": 1}]')
    command = [sys.executable, "-m", "tests.emulators.box", "--port", "0", "--part-size", str(MIB)]
    command += ["--quiet", "--folder-id", "42", "--faults", str(faults), "--log", str(tmp_path / "log")]
    command += ["--data", str(tmp_path / "data"), "--max-upload-size", str(200 * MIB), "--latency-ms", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()


def peak_kib(pid: int) -> int:
    """The most memory a process has held, in KiB."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_flat(program: tuple[subprocess.Popen[str], str]) -> None:
    """A file of 150 MiB goes up in six streams and comes down, and the emulator grows by less than 24 MiB."""
    process, url = program
    box = BoxEmulator(folder_id="42")
    box.url = url
    client, size, piece = connect(box, attempts=3), 150 * MIB, DATA[:MIB]
    client.users.get_user_me()
    before = peak_kib(process.pid)
    session = client.chunked_uploads.create_file_upload_session("42", size, "a.zip")
    endpoint, whole = session.session_endpoints.upload_part, hashlib.sha1()
    for _ in range(150):
        whole.update(piece)

    def put(number: int) -> Any:
        place = f"bytes {number * MIB}-{number * MIB + MIB - 1}/{size}"
        call = client.chunked_uploads.upload_file_part_by_url
        return call(endpoint, io.BytesIO(piece), digest(piece), place).part

    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(put, range(150)))
    total = "sha=" + base64.b64encode(whole.digest()).decode()
    commits = client.chunked_uploads.create_file_upload_session_commit_by_url
    entry = commits(session.session_endpoints.commit, parts, total).entries[0]
    link = client.downloads.get_download_file_url(entry.id)
    with requests.get(link, stream=True, timeout=10) as answer:
        assert sum(len(chunk) for chunk in answer.iter_content(MIB)) == size
    grown = peak_kib(process.pid) - before
    assert grown < 24 * 1024, f"{grown} KiB"


def test_program(program: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    """The program obeys its options, tells its state, logs, and ends cleanly on SIGTERM."""
    process, url = program
    box = BoxEmulator(folder_id="42")
    box.url = url
    client = connect(box)
    assert refused(client.users.get_user_me) == (503, "unavailable")
    assert client.users.get_user_me().max_upload_size == 200 * MIB
    upload(client, "42", "a.zip", b"hello")
    state = requests.get(f"{url}/_emulator", timeout=5).json()
    assert [(file["name"], file["size"]) for file in state["files"]] == [("a.zip", 5)]
    assert state["requests"] == ["token 200", "me 503 unavailable", "me 200", "upload 201"]
    assert (state["violations"], state["errors"]) == ([], [])
    assert len((tmp_path / "log").read_text().splitlines()) == 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert [path.read_bytes() for path in (tmp_path / "data").rglob("*.blob")] == [b"hello"]


def test_stop_is_prompt() -> None:
    """Stopping cuts off what still hangs, and leaves no files behind."""
    box = BoxEmulator(faults=[{"api": "me", "action": "silence"}]).start()
    box.add_file("a", b"x")
    work = box.files()["a"].path.parent
    client = connect(box)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.users.get_user_me)
        while not box.calls("me"):
            time.sleep(0.01)
        began = time.monotonic()
        box.stop()
        assert time.monotonic() - began < 1
        with pytest.raises(BoxSDKError):
            waiting.result()
    assert not work.exists()
