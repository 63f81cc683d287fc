"""TLS of the gRPC port."""

from collections.abc import Sequence
from typing import Any

import grpc

from ..tls_files import TlsFiles, TlsWatch


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a server shows, and asks for. Files that have changed count for the connections made from then on.

    Raises:
        UsageError: a file cannot be read, or is no PEM.
    """
    watch = TlsWatch(files)

    def changed() -> Any:  # None where nothing has, which the library's types do not tell
        contents = watch.changed()
        return None if contents is None else _configuration(contents)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files.read()), changed, require_client_authentication=files.client_ca is not None
    )


def _configuration(contents: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
    certificate, key, *authorities = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)
