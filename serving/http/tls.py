"""TLS of the HTTP port."""

import logging
import ssl

from ...backends.errors import UsageError
from ..tls_files import TlsFiles, TlsWatch

_log = logging.getLogger(__name__)


class TlsContext:
    """
    Args:
        files: what the server shows, and asks for.

    Attributes:
        context: for connections; whoever has it need not look at the files.

    Raises:
        UsageError: a file cannot be read, or is no PEM of a certificate or a key.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._watch = TlsWatch(files)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if files.client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
        files.read()
        self._load()

    def refresh(self) -> None:
        """Files that have changed count for the connections made from now on. Authorities that are taken out of
        `client_ca` count until the next start: a context has no way to forget one."""
        if self._watch.changed() is not None:
            try:
                self._load()
            except UsageError as error:
                _log.error("the certificates stay as they were: %s", error)

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(self._files.certificate, self._files.key)
            if self._files.client_ca is not None:
                self.context.load_verify_locations(self._files.client_ca)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(map(str, self._files.paths))
            raise UsageError(f"{names} are no certificate and its key, in PEM: {error}") from None
