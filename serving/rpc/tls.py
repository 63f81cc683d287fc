"""TLS: certificates from files, read again when they change."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ...backends.errors import UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files.

    Attributes:
        certificate: the server's, those between it and the root behind it.
        key: its private key, not encrypted.
        client_ca: who must have signed the certificates that clients show; None asks them for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.certificate, self.key) if self.client_ca is None else (self.certificate, self.key, self.client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a server shows, and asks for. Files that have changed count for the connections made from then on.

    Raises:
        UsageError: a file cannot be read, or is no PEM.
    """
    stamps = _stamps(files)

    def changed() -> Any:  # None where nothing has, which the library's types do not tell
        nonlocal stamps
        try:
            now = _stamps(files)
            if now == stamps:
                return None
            stamps, configuration = now, _configuration(files)
        except UsageError as error:
            _log.error("the certificates stay as they were: %s", error)
            return None
        _log.info("the certificates were read again")
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), changed, require_client_authentication=files.client_ca is not None
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    contents: list[bytes] = []
    for path in files.paths:
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): expected a PEM file") from None
        if b"-----BEGIN " not in contents[-1]:
            raise UsageError(f"{path} is no PEM file: expected one with a line that begins with -----BEGIN")
    certificate, key, *authorities = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)


def _stamps(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in files.paths))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): expected a PEM file") from None
