"""The pages of one cache group, handed out with reference counts."""

from ..backends.errors import DistaffError


class IntegrityError(DistaffError):
    """The host's bookkeeping contradicts itself: a bug of the engine, not of a request."""


def check(condition: bool, message: str) -> None:
    """
    Raises:
        IntegrityError: the condition does not hold.
    """
    if not condition:
        raise IntegrityError(message)


class PagePool:
    """Pages 0 .. num_pages - 1. The page freed last is handed out first: it may still be in the device's cache."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(reversed(range(num_pages)))
        self._holders = [0] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def alloc(self) -> int | None:
        """A page with one holder; None when all are held."""
        if not self._free:
            return None
        page = self._free.pop()
        self._holders[page] = 1
        return page

    def retain(self, page: int) -> int:
        """One holder more; returns how many there are now.

        Raises:
            IntegrityError: the page is free.
        """
        if not self._holders[page]:
            raise IntegrityError(f"page {page} is retained but free")
        self._holders[page] += 1
        return self._holders[page]

    def release(self, page: int) -> int:
        """One holder less; returns how many are left, and frees the page with the last.

        Raises:
            IntegrityError: the page is free already.
        """
        if page < 0 or not self._holders[page]:
            raise IntegrityError(f"page {page} is released but free")
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free.append(page)
        return self._holders[page]

    def num_holders(self, page: int) -> int:
        return self._holders[page]

    def check_integrity(self, expected: dict[int, int] | None = None) -> None:
        """Compares the free list with the counts, and the counts with `expected` (page -> holders, of all held ones).

        Raises:
            IntegrityError: they differ.
        """
        free = set(self._free)
        check(len(free) == len(self._free), "a page is free twice")
        wrong = free ^ {page for page, holders in enumerate(self._holders) if not holders}
        check(not wrong, "pages are both held and free, or neither: " + str(sorted(wrong)[:8]))
        if expected is not None:
            found = {page: holders for page, holders in enumerate(self._holders) if holders}
            if found != expected:
                wrong = {page for page in found | expected if found.get(page) != expected.get(page)}
                shown = [(page, found.get(page, 0), expected.get(page, 0)) for page in sorted(wrong)[:8]]
                raise IntegrityError(f"(page, holders, holders that are known): {shown}")
