"""Addresses, and how a server is reached over TLS."""

import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.serving.client import Client, RetryPolicy, Target, UnavailableError

from .scripted import Scripted, admitted, beside, delta, finished

ANSWER = [admitted(), delta("Hello", 1), finished()]


@pytest.mark.parametrize(
    ("address", "place", "secure"),
    [
        ("127.0.0.1:5", "127.0.0.1:5", False),
        ("grpc://host:50051", "host:50051", False),
        ("grpcs://host:443", "host:443", True),
        ("[::1]:80", "[::1]:80", False),
        ("unix:/run/distaff.socket", "unix:/run/distaff.socket", False),
    ],
)
def test_addresses(address: str, place: str, secure: bool) -> None:
    assert (Target(address).place, Target(address).secure) == (place, secure)
    assert Target(address, ca="ca.pem").secure


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:http", "host:65536", "http://host:80"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidParameterError, match="HOST:PORT"):
        Target(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certificate": "c.pem"}, "go together"),
        ({"token": ""}, "token is empty"),
        ({"token": "a\nb"}, "printable"),
        ({"ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Client("host:1", **options)


def certificate(folder: Path, name: str, *signed_by: str) -> None:
    """Makes NAME.pem and NAME.key, signed by themselves or by others."""
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:server.test"]
    issuer = [word for given in signed_by for word in ("-CA", f"{given}.pem", "-CAkey", f"{given}.key")]
    command = [*request, "-keyout", f"{name}.key", "-out", f"{name}.pem", *names, *issuer]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_tls_and_mutual_tls(tmp_path: Path) -> None:
    certificate(tmp_path, "ca")
    certificate(tmp_path, "server", "ca")
    certificate(tmp_path, "client", "ca")
    read = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pair = [(read["server.key"], read["server.pem"])]
    ca = tmp_path / "ca.pem"

    def ask(port: int, **options: Any) -> str:
        retry = RetryPolicy(attempts=1)
        with Client(f"127.0.0.1:{port}", server_name="server.test", retry=retry, timeout=20, **options) as client:
            return client.generate_stream("p").result().text

    def one_way(port: int) -> None:
        assert ask(port, ca=ca) == "Hello"
        with pytest.raises(UnavailableError):
            ask(port)  # no TLS
        with pytest.raises(UnavailableError):
            ask(port, ca=tmp_path / "client.pem")  # another authority

    def both_ways(port: int) -> None:
        own = {"certificate": tmp_path / "client.pem", "key": tmp_path / "client.key"}
        assert ask(port, ca=ca, **own) == "Hello"
        with pytest.raises(UnavailableError):
            ask(port, ca=ca)

    beside(Scripted(ANSWER), one_way, grpc.ssl_server_credentials(pair))
    mutual = grpc.ssl_server_credentials(pair, read["ca.pem"], require_client_auth=True)
    beside(Scripted(ANSWER), both_ways, mutual)
