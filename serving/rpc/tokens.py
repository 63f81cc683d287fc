"""Bearer tokens from a file: who they belong to, and what these may have under way."""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ...backends.errors import UsageError
from ..front.errors import AuthenticationError
from ..front.limits import TenantLimits
from .callers import Identity

_LIMITS = tuple(limit.name for limit in fields(TenantLimits))
_KEYS = {"token", "sha256", "tenant", "admin", *_LIMITS}
_LOOK_SECONDS = 1.0
_LEAST_LEN = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    identity: Identity
    limits: TenantLimits


class TokenFile:
    """A YAML list of entries such as

        - token: ALONGSECRET          # or sha256: the hexadecimal SHA-256 of it
          tenant: team-a
          admin: true                 # may use the Admin service; false if left out
          max_streams: 8              # and max_queued, max_tokens_in_flight: limits of the tenant

    It is read again when it has changed; a file that cannot be read then leaves things as they were.

    Args:
        path: the file.
        on_limits: called with the limits of each tenant, at the start and after a change.
        clock: seconds.

    Raises:
        UsageError: the file cannot be read, or says something else.
    """

    def __init__(
        self,
        path: Path,
        *,
        on_limits: Callable[[Mapping[str, TenantLimits]], None] = lambda limits: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._on_limits = on_limits
        self._clock = clock
        self._stamp = _stamp(path)
        self._entries = read_tokens(path)
        self._looked = clock()
        on_limits(self.limits)

    @property
    def limits(self) -> dict[str, TenantLimits]:
        """Of each tenant."""
        return {entry.identity.tenant: entry.limits for entry in self._entries}

    def authenticate(self, header: str | None) -> Identity:
        """Whom the token of an Authorization header belongs to.

        Takes as long for a token that is nearly right as for any other.

        Raises:
            AuthenticationError: there is none, or it is nobody's; the message does not say how it was wrong.
        """
        self._look()
        kind, _, token = (header or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise AuthenticationError("a bearer token is needed: send the metadata 'authorization: Bearer TOKEN'")
        digest = hashlib.sha256(token.strip().encode(errors="replace")).digest()
        found: Identity | None = None
        for entry in self._entries:  # all of them, whichever it is
            if hmac.compare_digest(entry.digest, digest):
                found = entry.identity
        if found is None:
            raise AuthenticationError("the bearer token is not valid here")
        return found

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._entries = read_tokens(self._path)
        except (OSError, UsageError) as error:
            _log.error("the tokens stay as they were: %s", error)
            return
        _log.info("%s was read again: %d tokens", self._path, len(self._entries))
        self._on_limits(self.limits)


def read_tokens(path: Path) -> tuple[_Entry, ...]:
    """
    Raises:
        UsageError: the file cannot be read, or says something else; the message names the entry, and no token.
    """
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no YAML in UTF-8"
        raise UsageError(f"{path}: the tokens cannot be read ({what})") from None
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{path} is no list: expected entries with token (or sha256) and tenant")
    entries = tuple(_read(f"{path}: entry {number}", entry) for number, entry in enumerate(listed, 1))
    limits: dict[str, TenantLimits] = {}
    for number, entry in enumerate(entries, 1):
        tenant = entry.identity.tenant
        if limits.setdefault(tenant, entry.limits) != entry.limits:
            raise UsageError(f"{path}: entry {number}: tenant {tenant!r} has other limits in an entry before it")
    if len({entry.digest for entry in entries}) < len(entries):
        raise UsageError(f"{path}: a token stands in two entries, expected one identity for each")
    return entries


def _read(where: str, entry: Any) -> _Entry:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is a {type(entry).__name__}, expected token (or sha256) and tenant")
    unknown = {str(key) for key in entry} - _KEYS
    if unknown:
        raise UsageError(f"{where} has {', '.join(sorted(unknown))}, expected {', '.join(sorted(_KEYS))} alone")
    token, sha256, tenant, admin = (entry.get(key) for key in ("token", "sha256", "tenant", "admin"))
    if (token is None) == (sha256 is None):
        raise UsageError(f"{where} needs either token or sha256")
    if not isinstance(tenant, str) or not tenant:
        raise UsageError(f"{where}: tenant is {tenant!r}, expected a name")
    if admin not in (None, True, False):
        raise UsageError(f"{where}: admin is {admin!r}, expected true or false")
    for name in _LIMITS:
        if not isinstance(entry.get(name), int | None) or isinstance(entry.get(name), bool):
            raise UsageError(f"{where}: {name} is {entry[name]!r}, expected a whole number")
    limits = TenantLimits(**{name: entry.get(name) for name in _LIMITS})
    if token is not None:
        if not isinstance(token, str) or len(token) < _LEAST_LEN:
            raise UsageError(f"{where}: the token is no text of at least {_LEAST_LEN} characters (quote it)")
        digest = hashlib.sha256(token.encode()).digest()
    else:
        try:
            digest = bytes.fromhex(str(sha256))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise UsageError(f"{where}: sha256 is no SHA-256 in hexadecimal")
    return _Entry(digest, Identity(tenant, bool(admin)), limits)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"{path}: the tokens cannot be read ({error.strerror})") from None
    return found.st_mtime_ns, found.st_size, found.st_ino
