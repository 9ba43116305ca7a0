"""What can stand between a program and a server: a forward proxy, and TLS with a CA of the network's own."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

CHUNK = 65536


def make_ca(directory: Path, name: str = "ca") -> tuple[Path, Path]:
    """A CA's certificate, and a PEM file with the key and the certificate for 127.0.0.1 that it signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def certificate(
        common_name: str, key: ec.EllipticCurvePrivateKey, issuer_name: str, issuer_key: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        is_ca = common_name == issuer_name
        now = datetime.now(UTC)
        subject, issuer = (
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (common_name, issuer_name)
        )
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number())
        built = built.not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(days=2))
        built = built.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        built = built.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if not is_ca:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return built.sign(issuer_key, hashes.SHA256())

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    pem = serialization.Encoding.PEM
    ca_path, server_path = directory / f"{name}.pem", directory / f"{name}-server.pem"
    ca_path.write_bytes(certificate(f"Test {name}", ca_key, f"Test {name}", ca_key).public_bytes(pem))
    plain = serialization.NoEncryption()
    server_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate("127.0.0.1", key, f"Test {name}", ca_key).public_bytes(pem)
    )
    return ca_path, server_path


class Listener:
    """Serves each connection to a port of this machine in a thread. A context manager."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        raise NotImplementedError

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve_and_close, args=(connection,), daemon=True).start()

    def _serve_and_close(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.serve(connection)
        connection.close()


class TlsFront(Listener):
    """TLS in front of a server that has none."""

    def __init__(self, certificate: Path, port: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._target = port
        super().__init__()
        self.url = f"https://127.0.0.1:{self.port}"

    def serve(self, connection: socket.socket) -> None:
        """Pass on what was said in secret."""
        with (
            self._context.wrap_socket(connection, server_side=True) as secured,
            socket.create_connection(("127.0.0.1", self._target)) as server,
        ):
            relay(secured, server)


class ForwardProxy(Listener):
    """A proxy for http (absolute URLs) and https (CONNECT) that notes each request line and each password."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.passwords: list[str] = []
        self.is_refusing = False
        super().__init__()
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"

    def hosts(self) -> set[str]:
        """The host and port of each request so far."""
        targets = [line.split()[1] for line in self.requests]
        return {target.partition("://")[2].partition("/")[0] or target for target in targets}

    def serve(self, connection: socket.socket) -> None:
        """Serve one request, and what follows on the same connection to the same server."""
        head, rest = read_head(connection)
        if not head:
            return
        line, *fields = head.decode("latin-1").split("\r\n")
        self.requests.append(line)
        own = "proxy-authorization:"
        self.passwords += [text[len(own) :].strip() for text in fields if text.lower().startswith(own)]
        if self.is_refusing:
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        method, target, version = line.split()
        host, _, path = target.partition("://")[2].partition("/")
        name, _, port = (host or target).rpartition(":")
        with socket.create_connection((name, int(port))) as server:
            if method == "CONNECT":
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                relay(connection, server)
                return
            kept = [text for text in fields if not text.lower().startswith((own, "connection:", "proxy-connection:"))]
            lines = [f"{method} /{path} {version}", "Connection: close", *kept]
            server.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + rest)
            relay(connection, server)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """A request's head without its empty line, and what came of its body; nothing if the client is gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (chunk := connection.recv(CHUNK)):
            return b"", b""
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until a side ends."""
    pending: Callable[[socket.socket], int] = lambda end: end.pending() if isinstance(end, ssl.SSLSocket) else 0  # noqa: E731
    while True:
        ready = [end for end in (one, other) if pending(end)] or select.select([one, other], [], [], 60)[0]
        if not ready:
            return
        for end in ready:
            if not (data := end.recv(CHUNK)):
                return
            (other if end is one else one).sendall(data)
