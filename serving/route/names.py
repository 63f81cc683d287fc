"""Which requests are under way by a name of their own: what one server watches over among its own, among all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TakenError(Exception):
    """A request of the same caller is under way by this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a request with the id {name[:100]!r} is running: give each its own")


def caller_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Who calls, as far as a router can tell: whoever shows the same token."""
    return "\0".join(value for name, value in metadata if name == "authorization" and isinstance(value, str))


class Names:
    """Names are each caller's own."""

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()

    @contextmanager
    def hold(self, caller: str, name: str) -> Iterator[None]:
        """Keeps a name for as long as a request runs; "" is none.

        Raises:
            TakenError: another one has it.
        """
        key = (caller, name)
        if key in self._held:
            raise TakenError(name)
        if not name:
            yield
            return
        self._held.add(key)
        try:
            yield
        finally:
            self._held.discard(key)
