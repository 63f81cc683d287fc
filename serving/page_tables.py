"""Which pages each sequence holds: allocated ahead of its positions, freed behind its windows."""

from collections.abc import Iterable
from collections.abc import Sequence as Row

from .page_pool import IntegrityError, PagePool
from .prefix_cache import NO_PAGE, Match, PrefixCache, PrefixStats
from .sequence import Sequence


class PageTables:
    """Pages of every cache group for running sequences and the prefix tree.

    All groups of a sequence grow together, so that one number, its capacity, says how far its pages reach.

    Args:
        num_pages: of each group.
        windows: key positions that a query sees in each group, its own included; None for all.
        page_size: positions of a page.
        max_chunk: most positions that a row computes in a step.
        min_chunk: fewest that it can be cut to.
    """

    def __init__(
        self, num_pages: Row[int], windows: Row[int | None], page_size: int, *, max_chunk: int, min_chunk: int
    ) -> None:
        self.num_pages = tuple(num_pages)
        self.windows = tuple(windows)
        self.page_size = page_size
        self._max_chunk = max_chunk
        self._min_chunk = min_chunk
        self._groups = range(len(self.num_pages))
        self._windowed = [(g, window) for g, window in enumerate(self.windows) if window is not None]
        self.stats = PrefixStats()
        self.no_match = Match((), (0,) * len(self.num_pages))
        self.clear()

    def clear(self) -> None:
        """Every page free, the tree empty. Sequences that held pages must forget them."""
        pools = [PagePool(count) for count in self.num_pages]
        # Half of all prompts share a first token: that alone is not worth a copy.
        self.cache = PrefixCache(
            pools, self.windows, self.page_size, min_copied=max(1, self.page_size // 4), stats=self.stats
        )

    # Sizes

    def needed(self, group: int, num_positions: int, chunk: int) -> int:
        """Most pages of a group held at once by a text of num_positions, computed in chunks of at most `chunk`."""
        pages = -(-num_positions // self.page_size)
        window = self.windows[group]
        if window is not None:
            # window - 1 positions behind the chunk's first one, wherever in a page they begin
            pages = min(pages, (window - 1 + chunk + self.page_size - 2) // self.page_size + 1)
        return pages

    def pages_needed(self, num_positions: int) -> tuple[int, ...]:
        """Fewest pages of each group with which a text of num_positions can be computed alone."""
        return tuple(self.needed(g, num_positions, self._min_chunk) for g in self._groups)

    def fits(self, num_positions: int) -> bool:
        """Whether a text of num_positions can be computed when it runs alone."""
        return all(need <= have for need, have in zip(self.pages_needed(num_positions), self.num_pages, strict=True))

    def available(self) -> list[int]:
        """Pages of each group that are free or idle."""
        return [self.cache.available(g) for g in self._groups]

    def reserve(self, running: Iterable[Sequence]) -> list[int]:
        """Pages of each group that running sequences need soon: for known text, and one more for the answer."""
        counts = [0] * len(self.num_pages)
        for sequence in running:
            known = min(sequence.num_positions, sequence.num_drawn + self.page_size)
            chunk = 1 if sequence.num_computed >= sequence.num_drawn - 1 else self._max_chunk
            for g, pages in enumerate(sequence.pages):
                live = len(pages) - sequence.num_freed[g]
                counts[g] += max(0, min(self.needed(g, known, chunk), self.num_pages[g]) - live)
        return counts

    def affords(self, sequence: Sequence, match: Match, reserve: Row[int]) -> bool:
        """Whether a sequence may start from a match without soon starving the running ones or itself."""
        idle = self.cache.num_idle(match)
        known = min(sequence.num_positions, sequence.num_drawn + self.page_size)
        for g in self._groups:
            need = min(self.needed(g, known, self._max_chunk), self.num_pages[g])
            need -= max(0, len(match.nodes) - match.first[g])
            if need + reserve[g] > self.cache.available(g) - idle[g]:
                return False
        return True

    def length(self, match: Match) -> int:
        """Positions that a sequence has computed when it starts from a match."""
        return len(match.nodes) * self.page_size + match.num_copied

    def reach(self, sequence: Sequence) -> int:
        """Positions that the sequence's pages could hold with every page that can be had now."""
        available = min((self.cache.available(g) for g in self._groups), default=0)
        return (len(sequence.pages[0]) + available) * self.page_size if sequence.pages else sequence.max_len

    def can_grow(self, sequences: Iterable[Sequence], num_positions: int) -> bool:
        """Whether each of the sequences can go num_positions on."""
        size = self.page_size
        count = 0
        for sequence in sequences:
            missing = sequence.num_computed + num_positions - sequence.capacity
            if missing > 0:
                count += -(-missing // size)
        return all(count <= self.cache.available(g) for g in self._groups)

    # Changes

    def start(self, sequence: Sequence, match: Match, *, caching: bool) -> None:
        """Gives a sequence the full pages of a match; `caching` lets its own into the tree."""
        sequence.pages = self.cache.take(match)
        sequence.num_freed = [min(first, len(match.nodes)) for first in match.first]
        sequence.num_shared = len(match.nodes)
        sequence.node = match.nodes[-1] if match.nodes else None
        sequence.num_computed = self.length(match)
        sequence.caching = caching and sequence.namespace is not None
        if sequence.caching:
            self.stats.queries += 1
            self.stats.query_tokens += len(sequence.tokens)
            self.stats.hit_tokens += sequence.num_computed
        if not sequence.num_admissions:
            sequence.num_cached = sequence.num_computed
        sequence.num_admissions += 1
        self._note(sequence)

    def grow(self, sequence: Sequence, end: int) -> bool:
        """Frees what lies behind the windows of position num_computed and allocates up to `end`.

        Returns:
            False when there are not enough pages; none is allocated then.
        """
        self.free_behind(sequence)
        count = -(-end // self.page_size) - sequence.capacity // self.page_size
        if count > 0:
            if any(count > self.cache.available(g) for g in self._groups):
                return False
            for g, pages in enumerate(sequence.pages):
                for _ in range(count):
                    page = self.cache.alloc(g)
                    if page is None:
                        raise IntegrityError(f"group {g} has fewer pages than it counts")
                    pages.append(page)
        self._note(sequence)
        return True

    def free_behind(self, sequence: Sequence) -> None:
        """Frees the pages that no query from position num_computed on sees."""
        for g, window in self._windowed:
            first = min((sequence.num_computed - window + 1) // self.page_size, len(sequence.pages[g]))
            for i in range(sequence.num_freed[g], first):
                self.cache.release(g, sequence.pages[g][i])
                sequence.pages[g][i] = NO_PAGE
            sequence.num_freed[g] = max(sequence.num_freed[g], first)

    def release(self, sequence: Sequence) -> None:
        """Frees everything that a sequence holds."""
        for g, pages in enumerate(sequence.pages):
            for page in pages[sequence.num_freed[g] :]:
                self.cache.release(g, page)
        self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Leaves a sequence without pages; they are released already."""
        sequence.pages, sequence.num_freed = [], []
        sequence.node, sequence.num_shared, sequence.caching = None, 0, False
        sequence.capacity = sequence.touch_at = 0

    def share(self, sequence: Sequence, plan: int) -> None:
        """Puts a sequence's full pages into the tree, as far as the host has read its text; for plan number `plan`."""
        size = self.page_size
        # A call of several decode steps may end early: the last token read need not be computed, those before it are.
        end = min(sequence.num_computed, max(sequence.prompt_len, len(sequence.tokens) - 1))
        while sequence.caching and (sequence.num_shared + 1) * size <= end:
            i = sequence.num_shared
            key = tuple(sequence.tokens[i * size : (i + 1) * size])
            pages = [row[i] for row in sequence.pages]
            node = self.cache.insert(sequence.namespace, sequence.node, key, pages, plan)
            if node is None:
                sequence.caching = False
                return
            sequence.node = node
            sequence.num_shared += 1

    def _note(self, sequence: Sequence) -> None:
        size = self.page_size
        sequence.capacity = len(sequence.pages[0]) * size if sequence.pages else sequence.max_len
        sequence.touch_at = sequence.capacity
        for g, window in self._windowed:
            sequence.touch_at = min(sequence.touch_at, (sequence.num_freed[g] + 1) * size + window - 1)
