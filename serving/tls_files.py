"""Files of TLS, which may be replaced while a server runs."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ..backends.errors import UsageError

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

    def read(self) -> list[bytes]:
        """What is in each of `paths`.

        Raises:
            UsageError: one cannot be read, or is no PEM.
        """
        contents: list[bytes] = []
        for path in self.paths:
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise UsageError(f"{path} cannot be read ({error.strerror}): expected a PEM file") from None
            if b"-----BEGIN " not in contents[-1]:
                raise UsageError(f"{path} is no PEM file: expected one with a line that begins with -----BEGIN")
        return contents


class TlsWatch:
    """Notices that the files have changed since it was asked last.

    Args:
        files: to look at.

    Raises:
        UsageError: one is not there.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = _stamps(files)

    def changed(self) -> list[bytes] | None:
        """What is in the files, if that is new; files that cannot be read leave things as they are."""
        try:
            now = _stamps(self._files)
            if now == self._stamps:
                return None
            self._stamps, contents = now, self._files.read()
        except UsageError as error:
            _log.error("the certificates stay as they were: %s", error)
            return None
        _log.info("the certificates were read again")
        return contents


def _stamps(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in files.paths))
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): expected a PEM file") from None
