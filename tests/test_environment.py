"""The process's environment: `.env`, variables, secret files, proxies, CA bundles, `~/.netrc`, the working directory.

What is wrong with one of them is one error that names it, with `--json` one object. Nothing but our own variables
authenticates us, one CA and one choice of proxy hold for all that is sent, and no part of a credential is printed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import certifi
import pytest

from tests.conftest import KEYSPACE, TOKEN, Cli, Result
from tests.emulators.box import BoxEmulator
from tests.emulators.data_api import DataApiEmulator
from tests.emulators.network import ForwardProxy, Listener, TlsFront, make_ca, read_head, relay
from tests.sabotage import SabotagedCli
from tests.support import Monitor

SCRIPTS = ["astra_backup.py", "restore.py"]
NOWHERE = "http://127.0.0.1:1"
NAME = "20260616_085246"


@pytest.fixture(scope="module", autouse=True)
def _end_of_forks() -> Iterator[None]:
    """The process that forks ends with the module."""
    yield
    SabotagedCli.stop()


@pytest.fixture
def cli(tmp_path: Path) -> SabotagedCli:
    """The two scripts, in a directory of their own, and a home without a `.netrc`."""
    for name in ("cwd", "home"):
        (tmp_path / name).mkdir()
    made = SabotagedCli(tmp_path / "cwd")
    made.environ["HOME"] = str(tmp_path / "home")
    return made


@pytest.fixture
def source() -> Iterator[DataApiEmulator]:
    """A database with a few documents."""
    with DataApiEmulator(token=TOKEN) as emulator:
        emulator.create(KEYSPACE, "docs")
        for number in range(3):
            emulator.put(KEYSPACE, "docs", f'{{"_id":{number}}}')
        yield emulator


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    """A proxy that all can use."""
    with ForwardProxy() as made:
        yield made


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CA of the network's own, and what a server at 127.0.0.1 needs."""
    return make_ca(tmp_path_factory.mktemp("ca"))


def assert_one_error(result: Result, *words: str) -> None:
    """Exit 1, a sentence that names what is wrong, the same in the JSON object, no traceback and no bug."""
    assert result.code == 1, result.err
    assert "Traceback" not in result.err
    assert "bug" not in result.err
    assert result.err.count(" ERROR ") == 1
    assert (result.json["status"], result.json["exit_code"]) == ("error", 1)
    for word in words:
        assert word in result.err
        assert word in result.json["error"] + result.json["hint"]


def common(script: str) -> list[str]:
    """Options with which a script needs a database and nothing else."""
    return ["--json", *(["--no-box"] if script == "astra_backup.py" else [])]


# ------------------------------------------------------------------------------------------------ .env


def as_bytes(content: bytes) -> Callable[[Path], object]:
    """A file with that content."""
    return lambda path: path.write_bytes(content)


def as_loop(path: Path) -> None:
    """A link to itself, which no user can open: the tests may run as root, who reads everything else."""
    path.symlink_to(path.name)


DEFECTS: dict[str, Callable[[Path], object]] = {
    "latin-1": as_bytes("ASTRA_DB_KEYSPACE=café\n".encode("latin-1")),
    "utf-16": as_bytes("ASTRA_DB_KEYSPACE=docs\n".encode("utf-16")),
    "utf-16-no-mark": as_bytes("ASTRA_DB_KEYSPACE=docs\n".encode("utf-16-le")),
    "nul": as_bytes(b"ASTRA_DB_KEYSPACE=do\x00cs\n"),
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "huge": as_bytes(b"#" * 20_000_000),
    "long": as_bytes(b"ASTRA_DB_KEYSPACE=" + b"x" * 200_000),
    "unreadable": as_loop,
    "dangling": lambda path: path.symlink_to("nowhere"),
}


def remove(path: Path) -> None:
    """Remove whatever it is."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dotenv_that_cannot_be_read_is_one_error(cli: SabotagedCli, script: str, defect: str) -> None:
    """A `.env` in another encoding, with a NUL, of another kind, unreadable or huge: exit 1, and the file is named."""
    DEFECTS[defect](cli.directory / ".env")
    result = cli.run(script, *common(script), "--api-endpoint", NOWHERE)
    assert_one_error(result, ".env")
    remove(cli.directory / ".env")


def test_a_dotenv_name_that_no_variable_can_have_is_one_error(cli: SabotagedCli) -> None:
    """A quoted name with an equals sign is no variable."""
    (cli.directory / ".env").write_text("'A=B'=c\n")
    assert_one_error(cli.run("astra_backup.py", "--json", "--no-box"), ".env")


@pytest.mark.parametrize("how", ["mark", "link", "null", "absent"])
def test_a_dotenv_that_can_be_read_is(source: DataApiEmulator, cli: SabotagedCli, how: str) -> None:
    """A byte order mark is left out, links are followed, `/dev/null` is an empty file; there need be none at all."""
    path = cli.directory / ".env"
    text = f"ASTRA_DB_API_ENDPOINT={source.url}\n"
    if how == "mark":
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    elif how == "link":
        (cli.directory / "settings").write_text(text)
        path.symlink_to("settings")
    elif how == "null":
        path.symlink_to("/dev/null")
    endpoint = {} if how in ("mark", "link") else {"ASTRA_DB_API_ENDPOINT": source.url}
    result = cli.run("astra_backup.py", "--no-box", **endpoint)
    assert result.code == 0, result.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dotenv_is_reported_in_the_form_that_was_asked_for(cli: SabotagedCli, script: str) -> None:
    """`--log-format json` holds for what is wrong with `.env`, too."""
    (cli.directory / ".env").mkdir()
    result = cli.run(script, *common(script), "--log-format", "json")
    assert [json.loads(line)["level"] for line in result.err.splitlines()] == ["error"]
    assert result.code == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_working_directory_that_is_gone_is_one_error(tmp_path: Path, script: str) -> None:
    """A working directory that was deleted: exit 1 and a sentence."""
    (tmp_path / "gone").mkdir()
    real = Cli(tmp_path)
    arguments = real.command(script, *common(script), "--api-endpoint", NOWHERE)
    code = "import os,sys; os.chdir('gone'); os.rmdir('../gone'); p = sys.executable; os.execv(p, [p, *sys.argv[1:]])"
    real.command = lambda *_: [sys.executable, "-c", code, *arguments[1:]]  # type: ignore[method-assign]
    assert_one_error(real.run(script), "working directory")


# ------------------------------------------------------------------------------------------------ variables


@pytest.mark.parametrize("defect", [*(name for name in DEFECTS if name not in ("utf-16-no-mark",)), "absent"])
@pytest.mark.parametrize("name", ["ASTRA_DB_APPLICATION_TOKEN", "BOX_CLIENT_SECRET", "BACKUP_PING_URL"])
def test_a_secret_file_that_cannot_be_read_is_one_error(cli: SabotagedCli, name: str, defect: str) -> None:
    """What a `…_FILE` variable names has the same defects: exit 1, and both the variable and the file are named."""
    if defect != "absent":
        DEFECTS[defect](cli.directory / "secret")
    cli.environ |= {"BOX_CLIENT_ID": "id", "BOX_ENTERPRISE_ID": "1", "BOX_FOLDER_ID": "2", "BOX_CLIENT_SECRET": "s"}
    environ = {name: "", f"{name}_FILE": "secret"}
    result = cli.run("astra_backup.py", "--json", "--api-endpoint", NOWHERE, **environ)
    assert_one_error(result, f"{name}_FILE", "secret")
    if defect != "absent":
        remove(cli.directory / "secret")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKUP_WORKERS", "many"),
        ("BACKUP_WORKERS", "0"),
        ("BACKUP_REQUEST_TIMEOUT_MS", "1.5"),
        ("BACKUP_RETRY_BUDGET", "soon"),
        ("BACKUP_LOG_FORMAT", "xml"),
        ("ASTRA_DB_ENVIRONMENT", "mars"),
        ("BACKUP_MAX_SHRINK", "half"),
        ("BACKUP_OUTPUT_DIR", "/dev/null"),
        ("BOX_BASE_URL", "box.example.com"),
        ("BOX_UPLOAD_URL", "http://[::1"),
        ("BOX_BASE_URL", "http://user:pass-word-9@127.0.0.1:1"),
    ],
)
def test_a_variable_with_an_invalid_value_is_named(cli: SabotagedCli, name: str, value: str) -> None:
    """A variable with a value that its option does not take: exit 1, and the variable is named."""
    ids = ("BOX_CLIENT_ID", "BOX_CLIENT_SECRET", "BOX_ENTERPRISE_ID", "BOX_FOLDER_ID")
    cli.environ |= dict.fromkeys(ids, "1234") | {"BOX_BASE_URL": NOWHERE, "BOX_UPLOAD_URL": NOWHERE}
    result = cli.run("astra_backup.py", "--json", "--api-endpoint", NOWHERE, **{name: value})
    assert_one_error(result, name)
    assert "pass-word-9" not in result.out + result.err


@pytest.mark.parametrize(
    "name",
    ["ASTRA_DB_APPLICATION_TOKEN", "ASTRA_DB_KEYSPACE", "ASTRA_DB_API_ENDPOINT", "BOX_CLIENT_SECRET", "BOX_FOLDER_ID",
     "BACKUP_PING_URL"],
)  # fmt: skip
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_variable_that_is_not_utf8_is_named(cli: SabotagedCli, script: str, name: str) -> None:
    """Bytes that are no text, as a terminal in Latin-1 sends: exit 1, and the variable is named."""
    environ = {"ASTRA_DB_API_ENDPOINT": NOWHERE} | {name: b"caf\xe9-1234".decode("utf-8", "surrogateescape")}
    assert_one_error(cli.run(script, *common(script), **environ), name)


def test_an_output_directory_that_is_not_utf8_works(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """A path may be any bytes."""
    path = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert cli.backup(source, BACKUP_OUTPUT_DIR=path).code == 0
    assert len(list((cli.directory / path).glob("2*"))) == 1


# ------------------------------------------------------------------------------------------------ proxies


@pytest.mark.parametrize(
    "no_proxy",
    ["fd07::/64", "[::1]", "[fd07::]/64", "::1", "[::1]:8080", "a b", "*.", ":", "[", "10.0.0.0/99", "http://["],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_value_of_no_proxy_stops_a_run(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, name: str, no_proxy: str
) -> None:
    """Networks, brackets, ports and nonsense in NO_PROXY, without any proxy: the run is what it is without them."""
    cli.with_box(box)
    result = cli.run("astra_backup.py", "--api-endpoint", source.url, **{name: no_proxy})
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("no_proxy", "is_direct"),
    [
        ("", False),
        ("*", True),
        ("example.com, *", True),
        ("127.0.0.1", True),
        ("127.0.0.0/8", True),
        ("fd07::/64,127.0.0.0/8", True),
        ("10.0.0.0/8,[::1],::1", False),
        ("127.0.0.1:{port}", True),
        ("127.0.0.1:1", False),
        ("example.com 127.0.0.1", True),
        ("0.0.1", False),
        ("27.0.0.1", False),
    ],
)
def test_no_proxy_says_what_is_reached_directly(
    source: DataApiEmulator,
    box: BoxEmulator,
    cli: SabotagedCli,
    proxy: ForwardProxy,
    no_proxy: str,
    is_direct: bool,
) -> None:
    """Addresses, networks, ports and `*` in NO_PROXY hold for the database and for Box alike."""
    cli.with_box(box)
    ports = [urllib.parse.urlsplit(server.url).port for server in (source, box)]
    value = ",".join(no_proxy.format(port=port) for port in ports)
    result = cli.run("astra_backup.py", "--api-endpoint", source.url, HTTP_PROXY=proxy.url, NO_PROXY=value)
    assert result.code == 0, result.err
    assert proxy.hosts() == (set() if is_direct else {f"127.0.0.1:{port}" for port in ports})


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("localhost", "localhost", True),
        ("localhost", "LOCALHOST:{port}", True),
        ("localhost", "127.0.0.1", False),
        ("db.localhost", "localhost", True),
        ("db.localhost", ".localhost", True),
        ("db.localhost", "*.localhost", True),
        ("db.localhost", "b.localhost", False),
    ],
)
def test_no_proxy_names_hosts_and_domains(
    source: DataApiEmulator, cli: SabotagedCli, proxy: ForwardProxy, host: str, no_proxy: str, is_direct: bool
) -> None:
    """A name in NO_PROXY is a host and all below it, with or without a dot, and a port if it has one."""
    port = urllib.parse.urlsplit(source.url).port
    environ = {"HTTP_PROXY": proxy.url, "NO_PROXY": no_proxy.format(port=port), "BACKUP_RETRY_BUDGET": "0"}
    cli.run("astra_backup.py", "--no-box", "--api-endpoint", f"http://{host}:{port}", **environ)
    assert proxy.hosts() == (set() if is_direct else {f"{host}:{port}"})


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/"])
def test_every_request_goes_through_the_proxy(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, proxy: ForwardProxy, name: str, form: str
) -> None:
    """The variable in both cases and for all schemes, with and without a scheme: database, Box, download and ping."""
    cli.with_box(box)
    environ = {name: form.format(proxy.address)}
    assert cli.run("astra_backup.py", "--api-endpoint", source.url, **environ).code == 0
    assert cli.run("restore.py", "--from-box", "--verify-only", **environ).code == 0
    assert len(proxy.requests) == len(source.requests) + len(box.requests)
    assert any("/dl/" in line for line in proxy.requests)


def test_a_ping_goes_through_the_proxy(source: DataApiEmulator, cli: SabotagedCli, proxy: ForwardProxy) -> None:
    """Pings take the same way; the proxy sees them, whoever answers."""
    environ = {"HTTP_PROXY": proxy.url, "NO_PROXY": source.url.rpartition("/")[2]}
    assert cli.backup(source, "--ping-url", "http://127.0.0.1:1/ping", **environ).code == 0
    assert proxy.hosts() == {"127.0.0.1:1"}


PROXY_USER, PROXY_PASSWORD = "the-proxys-user", "the-pass/word#of@it?"


def test_a_proxy_gets_its_password_whatever_it_is_made_of(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, proxy: ForwardProxy
) -> None:
    """A percent-encoded password comes to the proxy as it is, from every library, and to nobody else."""
    cli.with_box(box)
    encoded = urllib.parse.quote(PROXY_PASSWORD, safe="")
    environ = {"HTTP_PROXY": f"http://{PROXY_USER}:{encoded}@{proxy.address}"}
    assert cli.run("astra_backup.py", "--api-endpoint", source.url, **environ).code == 0
    assert cli.run("restore.py", "--from-box", "--verify-only", **environ).code == 0
    basic = base64.b64encode(f"{PROXY_USER}:{PROXY_PASSWORD}".encode()).decode()
    assert set(proxy.passwords) == {f"Basic {basic}"}
    assert len(proxy.passwords) == len(proxy.requests)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "ftp"])
@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy"])
def test_a_proxy_of_another_kind_is_named(source: DataApiEmulator, cli: SabotagedCli, name: str, scheme: str) -> None:
    """A SOCKS proxy is not supported: exit 1, and the variable is named; what NO_PROXY exempts needs none."""
    environ = {name: f"{scheme}://127.0.0.1:1"}
    assert_one_error(cli.backup(source, "--json", **environ), name)
    assert cli.backup(source, NO_PROXY="127.0.0.1", **environ).code == 0


def test_a_socks_proxy_for_all_yields_to_one_for_the_scheme(
    source: DataApiEmulator, cli: SabotagedCli, proxy: ForwardProxy
) -> None:
    """Desktops set ALL_PROXY to SOCKS beside HTTP_PROXY: the latter is taken."""
    assert cli.backup(source, ALL_PROXY="socks5://127.0.0.1:1", HTTP_PROXY=proxy.url).code == 0
    assert len(proxy.requests) == len(source.requests)


PIECES = ("the-proxys-user", "firstpart", "secondpart", "thirdpart")
BROKEN = {
    "hash": "http://the-proxys-user:firstpart#secondpart@127.0.0.1:1",
    "slash": "http://the-proxys-user:firstpart/secondpart@127.0.0.1:1",
    "question": "http://the-proxys-user:firstpart?secondpart@127.0.0.1:1",
    "digits": "http://the-proxys-user:12/secondpart@127.0.0.1:1",
    "bracket": "http://the-proxys-user:firstpart[secondpart@127.0.0.1:1",
    "all": "http://the-proxys-user:firstpart/second#secondpart?thirdpart@127.0.0.1:1",
    "port": "http://the-proxys-user:firstpart@127.0.0.1:secondpart",
    "host": "http://the-proxys-user:firstpart@",
    "bare": "the-proxys-user:firstpart#secondpart@127.0.0.1:1",
    "socks": "socks5://the-proxys-user:firstpart@127.0.0.1:1",
    "space": "http://the-proxys-user:firstpart secondpart/thirdpart@127.0.0.1:1",
    "scheme": "htp:/the-proxys-user:firstpart@127.0.0.1:1",
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "all_proxy"])
def test_a_proxy_url_that_does_not_parse_is_named_and_not_shown(
    source: DataApiEmulator, cli: SabotagedCli, name: str, broken: str
) -> None:
    """Whatever a password breaks in a proxy's URL: exit 1, the variable is named, and no piece of it is printed."""
    result = cli.backup(source, "-v", "--json", **{name: BROKEN[broken]})
    assert result.code == 1
    assert name in result.json["error"]
    assert "bug" not in result.err
    assert not [piece for piece in PIECES if piece in result.out + result.err]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_proxy_url_that_does_not_parse_costs_no_snapshot(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, ca: tuple[Path, Path], broken: str
) -> None:
    """Only Box is behind the broken proxy: the snapshot is there, exit 3, and no piece of the URL is printed."""
    cli.with_box(box)
    with TlsFront(ca[1], box.port) as front:
        urls = {"BOX_BASE_URL": front.url, "BOX_UPLOAD_URL": f"{front.url}/api"}
        environ = urls | {"HTTPS_PROXY": BROKEN[broken], "SSL_CERT_FILE": str(ca[0])}
        result = cli.run("astra_backup.py", "-v", "--json", "--api-endpoint", source.url, **environ)
        assert result.code == 3, result.err
        assert "HTTPS_PROXY" in result.json["upload"]["error"]
        assert len(cli.snapshots()) == 1
        check = cli.run("astra_backup.py", "--check", "-v", "--json", "--api-endpoint", source.url, **environ)
        listed = cli.run("restore.py", "--from-box", "--list", "-v", "--json", **environ)
    assert (check.code, listed.code) == (1, 1)
    for said in (result, check, listed):
        assert "HTTPS_PROXY" in said.out
        assert not [piece for piece in PIECES if piece in said.out + said.err]


def test_a_proxy_that_is_not_there_shows_no_password(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli
) -> None:
    """Nobody listens where the proxy should be: the errors, tracebacks included, hold no password in any form."""
    cli.with_box(box)
    encoded = urllib.parse.quote(PROXY_PASSWORD, safe="")
    environ = {"HTTP_PROXY": f"http://{PROXY_USER}:{encoded}@127.0.0.1:1", "BACKUP_RETRY_BUDGET": "0"}
    direct = {"NO_PROXY": source.url.rpartition("/")[2]}
    results = [
        cli.backup(source, "-v", "--json", **environ),
        cli.run("astra_backup.py", "-v", "--json", "--api-endpoint", source.url, **environ, **direct),
    ]
    assert [result.code for result in results] == [1, 3]
    basic = base64.b64encode(f"{PROXY_USER}:{PROXY_PASSWORD}".encode()).decode()
    for result in results:
        for form in (PROXY_USER, PROXY_PASSWORD, encoded, basic):
            assert form not in result.out + result.err


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_proxy_that_wants_a_password_is_an_error_at_once(
    source: DataApiEmulator, cli: SabotagedCli, proxy: ForwardProxy, ca: tuple[Path, Path], is_tls: bool
) -> None:
    """407 does not pass: one attempt, and the error says so."""
    proxy.is_refusing = True
    with TlsFront(ca[1], urllib.parse.urlsplit(source.url).port or 0) as front:
        environ = {"ALL_PROXY": proxy.url, "SSL_CERT_FILE": str(ca[0]), "BACKUP_RETRY_BUDGET": "60"}
        url = front.url if is_tls else source.url
        result = cli.run("astra_backup.py", "--no-box", "--json", "--api-endpoint", url, **environ)
    assert_one_error(result, "407", "PROXY")
    assert len(proxy.requests) == 1


# ------------------------------------------------------------------------------------------------ .netrc


class Redirector(Listener):
    """In front of Box: sends each GET to another address of the same host first, and notes what authenticates it."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.seen: list[tuple[str, str]] = []
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, connection: object) -> None:
        """Answer a request, or pass it on."""
        import socket

        assert isinstance(connection, socket.socket)
        head, rest = read_head(connection)
        if not head:
            return
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, version = line.split()
        kept = [text for text in fields if not text.lower().startswith("connection:")]
        self.seen += [(target, text.partition(":")[2].strip()) for text in fields if text.lower().startswith("auth")]
        if method == "GET" and not target.startswith("/again"):
            reply = (
                f"HTTP/1.1 307 Redirect\r\nLocation: /again{target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(reply.encode())
            return
        lines = [f"{method} {target.removeprefix('/again')} {version}", "Connection: close", *kept]
        with socket.create_connection(("127.0.0.1", self.target)) as server:
            server.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + rest)
            relay(connection, server)


@pytest.mark.parametrize("where", ["home", "variable"])
@pytest.mark.parametrize("entry", ["default", "machine 127.0.0.1"])
def test_a_netrc_authenticates_nothing(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, where: str, entry: str
) -> None:
    """An entry of `~/.netrc`, or of what NETRC names, does not take the place of our token, redirects included."""
    path = Path(cli.environ["HOME"]) / ".netrc"
    path.write_text(f"{entry} login somebody password another-password\n")
    path.chmod(0o600)
    if where == "variable":
        cli.environ |= {"NETRC": str(path), "HOME": "/nowhere"}
    cli.with_box(box)
    with Redirector(box.port) as front:
        environ = {"BOX_BASE_URL": front.url, "BOX_UPLOAD_URL": f"{front.url}/api"}
        result = cli.run("astra_backup.py", "--api-endpoint", source.url, **environ)
        assert result.code == 0, result.err
        assert {target.startswith("/again") for target, _ in front.seen} == {True, False}
        assert {text.split()[0] for _, text in front.seen} == {"Bearer"}
    assert cli.run("restore.py", "--from-box", "--verify-only").code == 0


def test_a_proxys_password_stays_with_the_proxy(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, proxy: ForwardProxy
) -> None:
    """A redirect from a host behind the proxy to one that NO_PROXY exempts takes no proxy password along."""
    cli.with_box(box)
    with Redirector(box.port) as front:
        environ = {"BOX_BASE_URL": front.url, "BOX_UPLOAD_URL": f"{front.url}/api", "NO_PROXY": f"127.0.0.1:{box.port}"}
        environ["HTTP_PROXY"] = f"http://{PROXY_USER}:{PIECES[1]}@{proxy.address}"
        result = cli.run("astra_backup.py", "--api-endpoint", source.url, **environ)
    assert result.code == 0, result.err
    assert not [name for request in box.requests for name in request.headers if name.lower().startswith("proxy")]


# ------------------------------------------------------------------------------------------------ CA bundles

CA_DEFECTS = {
    "absent": "nowhere.pem",
    "empty": "empty.pem",
    "text": "text.pem",
    "fifo": "fifo.pem",
}


def make_bad_bundles(directory: Path) -> None:
    """Files that hold no certificates."""
    (directory / "empty.pem").write_bytes(b"")
    (directory / "text.pem").write_bytes(b"\xff\x00 no certificate")
    os.mkfifo(directory / "fifo.pem")


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("form", ["file", "directory"])
def test_one_ca_holds_for_everything(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, ca: tuple[Path, Path], name: str, form: str
) -> None:
    """Database, Box, downloads and pings behind a CA that SSL_CERT_FILE, else REQUESTS_CA_BUNDLE, names: all work."""
    cli.with_box(box)
    bundle = ca[0]
    if form == "directory":
        bundle = cli.directory / "certificates"
        bundle.mkdir()
        shutil.copy(ca[0], bundle / f"{subject_hash(ca[0])}.0")
    real = Monitor()
    ports = (urllib.parse.urlsplit(source.url).port or 0, box.port, real.server.server_port)
    with (
        TlsFront(ca[1], ports[0]) as database,
        TlsFront(ca[1], ports[1]) as front,
        TlsFront(ca[1], ports[2]) as monitor,
    ):
        box.url = front.url
        environ = {"BOX_BASE_URL": front.url, "BOX_UPLOAD_URL": f"{front.url}/api", name: str(bundle)}
        ping = ("--ping-url", f"{monitor.url}/check")
        result = cli.run("astra_backup.py", "--api-endpoint", database.url, *ping, **environ)
        assert result.code == 0, result.err
        assert real.paths() == ["/check/start", "/check"]
        result = cli.run("restore.py", "--from-box", "--verify-only", **environ)
        assert result.code == 0, result.err
        assert [request for request in box.requests if request.path.startswith("/dl/")]
    real.server.shutdown()
    real.server.server_close()


def subject_hash(certificate: Path) -> str:
    """The name under which OpenSSL looks for a certificate in a directory."""
    import subprocess

    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    command = ["openssl", "x509", "-in", certificate, "-noout", "-subject_hash"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_ssl_cert_file_goes_before_requests_ca_bundle(
    source: DataApiEmulator, cli: SabotagedCli, ca: tuple[Path, Path]
) -> None:
    """Where both are set, the first counts, and the second is not even looked at."""
    with TlsFront(ca[1], urllib.parse.urlsplit(source.url).port or 0) as database:
        environ = {"SSL_CERT_FILE": str(ca[0]), "REQUESTS_CA_BUNDLE": "nowhere.pem"}
        result = cli.run("astra_backup.py", "--no-box", "--api-endpoint", database.url, **environ)
    assert result.code == 0, result.err


@pytest.mark.parametrize("defect", CA_DEFECTS)
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_ca_bundle_that_is_none_is_named(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, name: str, defect: str
) -> None:
    """A bundle that is missing or no bundle: exit 1 before anything is read, and the variable and file are named."""
    make_bad_bundles(cli.directory)
    cli.with_box(box)
    environ = {name: CA_DEFECTS[defect]}
    result = cli.run("astra_backup.py", "--json", "--api-endpoint", source.url, **environ)
    assert_one_error(result, name, CA_DEFECTS[defect])
    check = cli.run("astra_backup.py", "--json", "--check", "--api-endpoint", source.url, **environ)
    assert (check.code, name in check.out) == (1, True)
    assert source.requests == []


@pytest.mark.parametrize("other", ["another", "certifi"])
def test_a_certificate_that_another_ca_signed_is_an_error_at_once(
    source: DataApiEmulator,
    box: BoxEmulator,
    cli: SabotagedCli,
    ca: tuple[Path, Path],
    tmp_path: Path,
    other: str,
) -> None:
    """A certificate error is named with what to do, once; of the database it is exit 1, of Box 3 with the snapshot."""
    cli.with_box(box)
    environ = {"SSL_CERT_FILE": str(make_ca(tmp_path, "other")[0])} if other == "another" else {}
    environ["BACKUP_RETRY_BUDGET"] = "60"
    with TlsFront(ca[1], urllib.parse.urlsplit(source.url).port or 0) as database:
        url = database.url
        result = cli.run("astra_backup.py", "--no-box", "--json", "--api-endpoint", url, **environ)
        assert_one_error(result, "certificate verify failed", "SSL_CERT_FILE")
        assert database.connections == 1
    with TlsFront(ca[1], box.port) as front:
        urls = {"BOX_BASE_URL": front.url, "BOX_UPLOAD_URL": f"{front.url}/api"}
        shrink = ("--max-shrink", "100")
        result = cli.run("astra_backup.py", "--json", *shrink, "--api-endpoint", source.url, **environ, **urls)
        assert result.code == 3, result.err
        error = result.json["upload"]["error"]
        assert "certificate verify failed" in error
        assert "SSL_CERT_FILE" in error
        assert front.connections == 1
    assert len(cli.snapshots()) == 1


def test_a_download_host_with_another_certificate_is_named(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, ca: tuple[Path, Path]
) -> None:
    """Downloads come from another host; its certificate error is named and not repeated either."""
    cli.with_box(box)
    assert cli.run("astra_backup.py", "--api-endpoint", source.url).code == 0
    with TlsFront(ca[1], box.port) as front:
        real, box.url = box.url, front.url
        result = cli.run("restore.py", "--from-box", "--verify-only", "--json", BACKUP_RETRY_BUDGET="60")
        box.url = real
        assert_one_error(result, "certificate verify failed", "SSL_CERT_FILE")
        assert front.connections == 1


# ------------------------------------------------------------------------------------------------ pings


PING_TROUBLES: dict[str, tuple[str, dict[str, str]]] = {
    "ca": ("http://127.0.0.1:1/ping", {"SSL_CERT_FILE": "nowhere.pem"}),
    "requests-ca": ("https://127.0.0.1:1/ping", {"REQUESTS_CA_BUNDLE": "nowhere.pem"}),
    "tls-ca": ("https://127.0.0.1:1/ping", {"SSL_CERT_FILE": "nowhere.pem"}),
    "socks": ("https://127.0.0.1:1/ping", {"HTTPS_PROXY": "socks5://127.0.0.1:1"}),
    "proxy": ("https://127.0.0.1:1/ping", {"HTTPS_PROXY": BROKEN["hash"]}),
    "port": ("http://127.0.0.1:99999/ping", {}),
    "port-text": ("http://127.0.0.1:x/ping", {}),
    "bracket": ("http://[::1/ping", {}),
    "no-address": ("http://[]/ping", {}),
    "user": ("http://the-proxys-user:firstpart/secondpart@127.0.0.1/ping", {}),
    "label": (f"http://{'a' * 70}.invalid/ping", {}),
    "space": ("http://exa mple/ping", {}),
    "dots": ("http://..../ping", {}),
    "idna": ("http://xn--/ping", {}),
    "control": ("http://127.0.0.1:1/pi\x01ng", {}),
    "long": ("http://127.0.0.1:1/" + "x" * 100_000, {}),
    "key-log": ("https://127.0.0.1:1/ping", {"SSLKEYLOGFILE": "/nowhere/keys", "SSL_CERT_FILE": certifi.where()}),
}


SPOILS_ALL = ("ca", "tls-ca", "requests-ca", "key-log")  # troubles of the database's requests, too


@pytest.mark.parametrize("trouble", PING_TROUBLES)
def test_a_ping_that_cannot_be_sent_changes_no_result(
    source: DataApiEmulator, box: BoxEmulator, cli: SabotagedCli, trouble: str
) -> None:
    """Whatever keeps a ping from being sent is a warning: the exit code is what it is without a ping, 0, 1 or 3."""
    source.create(KEYSPACE, "docs")
    cli.with_box(box)
    url, environ = PING_TROUBLES[trouble]
    arguments = ("astra_backup.py", "-v", "--json", "--api-endpoint", source.url)
    result = cli.run(*arguments, "--ping-url", url, **environ)
    assert result.code == cli.run(*arguments, **environ).code == (1 if trouble in SPOILS_ALL else 0), result.err
    assert "Nothing else changes" in result.err
    assert not [piece for piece in PIECES if piece in result.out + result.err]
    assert len(box.files()) == (0 if trouble in SPOILS_ALL else 2)
    box.faults = [{"api": "token", "action": "status", "status": 400, "times": None}]
    failed = cli.run(*arguments, "--ping-url", url, **environ)
    assert failed.code == (1 if trouble in SPOILS_ALL else 3), failed.err


@pytest.mark.parametrize("trouble", [name for name in PING_TROUBLES if name not in SPOILS_ALL])
def test_a_ping_that_cannot_be_sent_costs_no_snapshot(source: DataApiEmulator, cli: SabotagedCli, trouble: str) -> None:
    """A backup with a ping that cannot be sent is a backup."""
    url, environ = PING_TROUBLES[trouble]
    result = cli.backup(source, "--ping-url", url, **environ)
    assert result.code == 0, result.err
    assert len(cli.snapshots()) == 1
    assert "Traceback" not in result.err


# ------------------------------------------------------------------------------------------------ endpoints and tokens

UUID = "01234567-89ab-cdef-0123-456789abcdef"
ASTRA = f"https://{UUID}-us-east1.apps.astra.datastax.com"
NO_ENDPOINTS = {
    "the README's": ("prod", "https://DATABASE_ID-REGION.apps.astra.datastax.com"),
    "half of the README's": ("prod", f"https://{UUID}-REGION.apps.astra.datastax.com"),
    "brackets": ("prod", "https://<id>-<region>.apps.astra.datastax.com"),
    "an ellipsis": ("prod", "https://…"),
    "dots": ("prod", "https://...apps.astra.datastax.com"),
    "the whole path": ("prod", f"{ASTRA}/api/json/v1"),
    "a path and a slash": ("prod", f"{ASTRA}/api/json/v1/"),
    "another path": ("prod", f"{ASTRA}/swagger-ui"),
    "a path of a domain of one's own": ("prod", f"{NOWHERE}/api/json/v1"),
    "a version": ("hcd", f"{NOWHERE}/v1"),
    "a path elsewhere": ("cassandra", f"{NOWHERE}/api"),
}


@pytest.mark.parametrize("mistake", NO_ENDPOINTS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_endpoint_that_cannot_be_one_is_refused_at_once(cli: SabotagedCli, script: str, mistake: str) -> None:
    """Exit 1 with its form, and nothing is sent, let alone repeated."""
    environment, url = NO_ENDPOINTS[mistake]
    arguments = ["--no-box"] if script == "astra_backup.py" else []
    result = cli.run(script, *arguments, "--api-endpoint", url, "--environment", environment)
    assert result.code == 1
    assert f"is not an endpoint of the environment '{environment}'." in result.err
    assert "It has the form http" in result.err
    assert "without a path" in result.err
    assert "Trying again" not in result.err


def test_a_slash_at_the_end_is_fine(source: DataApiEmulator, cli: SabotagedCli) -> None:
    """Whoever copies it from a browser gets one."""
    assert cli.run("astra_backup.py", "--no-box", "--api-endpoint", f"{source.url}/").code == 0


@pytest.mark.parametrize(
    ("token", "environment", "hint"),
    [
        ('"AstraCS:quoted:0123"', "prod", "There are quotes or spaces in it"),
        ("AstraCS:in two:0123", "prod", "There are quotes or spaces in it"),
        ("Cassandra:dXNlcg==:cGFzcw==", "prod", 'It does not begin with "AstraCS:"'),
        ("AstraCS:another:0123", "prod", ""),
        ("Cassandra:dXNlcg==:cGFzcw==", "hcd", ""),
    ],
)
def test_a_token_that_is_refused_and_looks_odd(
    source: DataApiEmulator, cli: SabotagedCli, token: str, environment: str, hint: str
) -> None:
    """With a 401 it is said what is odd about a token of Astra; nothing of it is printed."""
    arguments = ("--no-box", "--api-endpoint", source.url, "--environment", environment)
    result = cli.run("astra_backup.py", *arguments, ASTRA_DB_APPLICATION_TOKEN=token)
    assert result.code == 1
    assert "The server answered HTTP 401" in result.err
    for each in ("There are quotes or spaces in it", 'It does not begin with "AstraCS:"'):
        assert (each in result.err) == (each == hint)
    assert not any(part in result.err for part in ("0123", "dXNlcg", "cGFzcw", "in two"))


# ------------------------------------------------------------------------------------------------ while it starts

IMPORTING = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", [*SCRIPTS, "snapshots.py"])
def test_a_signal_during_the_imports_ends_in_its_code(cli: SabotagedCli, script: str, number: signal.Signals) -> None:
    """A script that is still importing its libraries ends at once with 128 + n, without a traceback."""
    (cli.directory / "click.py").write_text(IMPORTING)
    running = cli.start(script, "--help", PYTHONPATH=str(cli.directory))
    try:
        assert running.stdout
        assert running.stdout.readline() == "importing\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=30)
    finally:
        running.kill()
    assert (running.returncode, err) == (128 + number, "")


@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelt_variable_is_told(source: DataApiEmulator, cli: SabotagedCli, place: str) -> None:
    """A variable that is almost one of ours is a warning that names ours; one far from it, or that stands beside
    the right one, is nobody's mistake.
    """
    source.create(KEYSPACE, "docs")
    wrong = {"ASTRA_DB_KEYSPCE": "shop", "BACKUP_WORKR": "9", "BOX_OF_CHOCOLATES": "1", "ASTRA_DB_API_ENDPOINTS": "x"}
    if place == ".env":
        (cli.directory / ".env").write_text("".join(f"{name}={value}\n" for name, value in wrong.items()))
    result = cli.run(
        "astra_backup.py", "--no-box", ASTRA_DB_API_ENDPOINT=source.url, **(wrong if place != ".env" else {})
    )
    assert result.code == 0, result.err
    assert "ASTRA_DB_KEYSPCE is set, which means nothing here. Is ASTRA_DB_KEYSPACE meant?" in result.err
    assert "BACKUP_WORKR is set, which means nothing here. Is BACKUP_WORKERS meant?" in result.err
    assert result.err.count("which means nothing here") == 2
