"""The HTTP port with TLS: what it shows, what it asks for, and files that are replaced."""

import asyncio
import os
import shutil
import ssl
from pathlib import Path

import httpx2
import pytest

from distaff.backends.errors import UsageError
from distaff.serving.http import server as server_module
from distaff.serving.http.server import HttpServer
from distaff.serving.http.tls import TlsContext
from distaff.serving.tls_files import TlsFiles

from ..certificates import make_certificates
from .asked import listening, run


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def client_of(server: HttpServer, folder: Path, name: str | None = None) -> httpx2.AsyncClient:
    """A client that trusts the root, and shows one of its certificates."""
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return httpx2.AsyncClient(base_url=f"https://127.0.0.1:{server.port}", verify=context, timeout=10)


def test_requests_and_certificates_of_clients(certificates: Path) -> None:
    files = TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")

    async def check() -> None:
        async with listening(server={"tls": files}) as (served, plain, server):
            async with client_of(server, certificates, "client") as client:
                answer = await client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4, "seed": 0})
                assert answer.json()["choices"][0]["text"] == served.text(served.answer("abc", 4))
            for name in (None, "expired"):
                async with client_of(server, certificates, name) as client:
                    with pytest.raises(httpx2.TransportError):
                        await client.get("/readyz")
            with pytest.raises(httpx2.TransportError):
                await plain.get("/readyz")

    run(check())


def test_files_that_are_replaced_count_from_then_on(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.02)
    for name in ("pem", "key"):
        shutil.copy(certificates / f"expired.{name}", tmp_path / f"shown.{name}")

    async def check() -> None:
        files = TlsFiles(tmp_path / "shown.pem", tmp_path / "shown.key")
        async with listening(server={"tls": files}) as (_, _, server):
            async with client_of(server, certificates) as client:
                with pytest.raises(httpx2.TransportError, match="expired"):
                    await client.get("/readyz")
            for name in ("pem", "key"):
                shutil.copy(certificates / f"server.{name}", tmp_path / f"shown.{name}")
                os.utime(tmp_path / f"shown.{name}", (1, 1))
            await asyncio.sleep(0.2)
            async with client_of(server, certificates) as client:
                assert (await client.get("/readyz")).status_code == 200

    run(check())


def test_files_that_are_none_are_refused_by_name(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")
    for certificate, says in ((tmp_path / "none.pem", "cannot be read"), (tmp_path / "text.pem", "no PEM file")):
        with pytest.raises(UsageError, match=says):
            TlsContext(TlsFiles(certificate, certificates / "server.key"))
    with pytest.raises(UsageError, match="no certificate and its key"):  # of another certificate
        TlsContext(TlsFiles(certificates / "server.pem", certificates / "client.key"))
