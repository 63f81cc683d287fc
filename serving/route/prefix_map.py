"""Which server has probably computed the beginning of a prompt: it was sent there, not long ago."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b

BLOCK_BYTES = 64
"""Prompts are compared in blocks of this size: 16 token ids of four bytes each, or about as many tokens of text."""

BYTES_PER_TOKEN = 4

_MOST_BLOCKS = 2048  # of one prompt; what two prompts share beyond 32,768 tokens counts as not shared


def blocks_of(prompt: bytes, salt: bytes = b"") -> Iterator[bytes]:
    """Hashes of the whole blocks of a prompt, each of everything up to its end."""
    digest = blake2b(salt, digest_size=12).digest()
    for start in range(0, min(len(prompt), _MOST_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        digest = blake2b(prompt[start : start + BLOCK_BYTES], digest_size=12, key=digest).digest()
        yield digest


class PrefixMap:
    """Remembers the beginnings of prompts by their blocks (blocks_of).

    Args:
        max_blocks: so many are remembered; those that were not used for longest go first.
    """

    def __init__(self, max_blocks: int = 2**18) -> None:
        self._max_blocks = max_blocks
        self._servers: OrderedDict[bytes, dict[str, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._servers)

    def matches(self, blocks: Iterable[bytes]) -> Mapping[str, int]:
        """Tokens at the beginning of a prompt that each server has seen; those that know nothing of it are left out."""
        found: dict[str, int] = {}
        candidates: set[str] | None = None
        for number, block in enumerate(blocks, 1):
            servers = self._servers.get(block)
            if servers is None:
                break
            self._servers.move_to_end(block)
            candidates = set(servers) if candidates is None else candidates & servers.keys()
            if not candidates:
                break
            for server in candidates:
                found[server] = number * BLOCK_BYTES // BYTES_PER_TOKEN
        return found

    def remember(self, server: str, blocks: Iterable[bytes]) -> None:
        """A prompt was sent to `server`."""
        for block in blocks:
            self._servers.setdefault(block, {})[server] = None
            self._servers.move_to_end(block)
        while len(self._servers) > self._max_blocks:
            self._servers.popitem(last=False)

    def forget(self, server: str) -> None:
        """The server has lost its cache: it was started anew."""
        for block in [block for block, servers in self._servers.items() if server in servers]:
            servers = self._servers[block]
            del servers[server]
            if not servers:
                del self._servers[block]
