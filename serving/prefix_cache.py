"""Texts whose keys and values are still in the cache: a radix tree over full pages.

A node is one page of tokens below its parent, with its page of each cache group. Groups with a window need only the
pages that cover the window before the end of a match, so theirs may be dropped at any depth; those of full groups go
leaf by leaf. The tree is a holder of its pages like any sequence. A page is idle when the tree alone holds it: idle
pages are what eviction can take, least recently used first, and only when a pool is empty.

Who holds a node's page of a full group also holds those of all nodes above it (to go on below a page that
the tree has already, a sequence gives it its own). Hence all idle pages can be had, and counting them is exact.
"""

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from .page_pool import IntegrityError, PagePool, check

NO_PAGE = -1


class Node:
    """One page of tokens (`key`) and its page of each group, or NO_PAGE. A root is a namespace: it has neither."""

    __slots__ = ("attached", "children", "depth", "key", "keys", "last_used", "namespace", "pages", "parent", "queued",
                 "ready")  # fmt: skip

    def __init__(self, parent: "Node | None", namespace: Hashable, key: tuple[int, ...], pages: list[int]) -> None:
        self.parent = parent
        self.namespace = namespace
        self.key = key
        self.pages = pages
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[tuple[int, ...], Node] = {}
        self.keys: list[tuple[int, ...]] = []  # of the children, sorted: the likest page is a neighbour
        self.ready = 0  # number of the first plan that may read it
        self.last_used = 0
        self.queued = [False] * len(pages)  # for each group: an entry in its heap
        self.attached = True


@dataclass(frozen=True)
class Match:
    """What the tree has of a text.

    Attributes:
        nodes: the full pages, from the first on.
        first: for each group the first of those pages that is needed.
        source: a page whose first `num_copied` tokens come next, to be copied before it is written to.
        without_source: the longest match that copies nothing, where this one does.
        in_flight: the text's next page is computed by the plan that is being made.
    """

    nodes: tuple[Node, ...]
    first: tuple[int, ...]
    source: Node | None = None
    num_copied: int = 0
    without_source: "Match | None" = None
    in_flight: bool = False


@dataclass
class PrefixStats:
    """Counts since the start. Tokens are those of admitted sequences; evictions are pages."""

    queries: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0
    evictions: int = 0


class PrefixCache:
    """The tree, and the only way to the pools it shares with running sequences.

    Args:
        pools: one for each cache group.
        windows: key positions that a query sees in each group, its own included; None for all.
        page_size: positions of a page.
        min_copied: fewest tokens for which a partly matching page is copied.
        stats: where to count; None starts anew.
    """

    def __init__(
        self,
        pools: Sequence[PagePool],
        windows: Sequence[int | None],
        page_size: int,
        *,
        min_copied: int = 1,
        stats: PrefixStats | None = None,
    ) -> None:
        self.pools = tuple(pools)
        self.page_size = page_size
        self.min_copied = min_copied
        self.stats = stats or PrefixStats()
        self._windows = tuple(windows)
        self._roots: dict[Hashable, Node] = {}
        self._nodes: tuple[dict[int, Node], ...] = tuple({} for _ in self.pools)  # page -> node
        self._idle = [0] * len(self.pools)
        self._heaps: tuple[list[tuple[int, int, int, Node]], ...] = tuple([] for _ in self.pools)
        self._clock = 0
        self._serial = 0

    # Pages

    def available(self, group: int) -> int:
        """Pages that `alloc` can give: free ones and idle ones."""
        return self.pools[group].num_free + self._idle[group]

    @property
    def levels(self) -> tuple[int, int]:
        """Pages of all groups that sequences hold, and pages that the tree alone holds."""
        idle = sum(self._idle)
        return sum(pool.num_pages - pool.num_free for pool in self.pools) - idle, idle

    def alloc(self, group: int) -> int | None:
        """A page with one holder, evicting if need be; None when sequences hold them all."""
        page = self.pools[group].alloc()
        if page is None and self._evict(group):
            page = self.pools[group].alloc()
        return page

    def retain(self, group: int, page: int) -> None:
        """One holder more of a page that is held."""
        if self.pools[group].retain(page) == 2 and page in self._nodes[group]:
            self._idle[group] -= 1

    def release(self, group: int, page: int) -> None:
        """One holder less; the page becomes idle when the tree keeps it, and free when nobody does."""
        if self.pools[group].release(page) == 1:
            node = self._nodes[group].get(page)
            if node is not None:
                self._idle[group] += 1
                self._queue(node, group)

    # Texts

    def match(self, namespace: Hashable, tokens: Sequence[int], limit: int, plan: int, unit: int = 1) -> Match:
        """The longest known beginning of tokens[:limit] that plan number `plan` may read, a multiple of `unit` long.
        Takes nothing yet."""
        self._clock += 1
        size, windows = self.page_size, [g for g, window in enumerate(self._windows) if window is not None]
        node, path, in_flight = self._roots.get(namespace), [], False
        runs = dict.fromkeys(windows, 0)  # pages present without a gap up to here
        best, first = 0, (0,) * len(self.pools)
        while node is not None and (len(path) + 1) * size <= limit:
            child = node.children.get(tuple(tokens[len(path) * size : (len(path) + 1) * size]))
            if child is None:
                break
            if child.ready > plan:
                in_flight = True
                break
            child.last_used = self._clock
            path.append(child)
            node = child
            for g in windows:
                runs[g] = runs[g] + 1 if child.pages[g] != NO_PAGE else 0
            needed = self._first_needed(len(path) * size)
            if len(path) * size % unit == 0 and all(len(path) - runs[g] <= needed[g] for g in windows):
                best, first = len(path), needed
        whole = Match(tuple(path[:best]), first, in_flight=in_flight)
        if node is None or in_flight:
            return whole
        source, common = self._likest(node, tuple(tokens[len(path) * size : min(limit, (len(path) + 1) * size)]), plan)
        common -= (len(path) * size + common) % unit
        if source is not None and common >= self.min_copied:
            needed = self._first_needed(len(path) * size + common)
            if all(len(path) - runs[g] <= needed[g] and source.pages[g] != NO_PAGE for g in windows):
                source.last_used = self._clock
                return Match(tuple(path), tuple(min(page, len(path)) for page in needed), source, common, whole)
        return whole

    def take(self, match: Match) -> list[list[int]]:
        """Retains a match's full pages; returns them for each group, NO_PAGE where behind the window."""
        pages = []
        for g, first in enumerate(match.first):
            held = [node.pages[g] for node in match.nodes[first:]]
            for page in held:
                self.retain(g, page)
            pages.append([NO_PAGE] * min(first, len(match.nodes)) + held)
        return pages

    def num_idle(self, match: Match) -> list[int]:
        """Pages of each group that are idle now and would not be if the match (its source too) were taken."""
        counts = []
        for g, first in enumerate(match.first):
            nodes = match.nodes[first:] if match.source is None else (*match.nodes[first:], match.source)
            pool = self.pools[g]
            counts.append(sum(node.pages[g] != NO_PAGE and pool.num_holders(node.pages[g]) == 1 for node in nodes))
        return counts

    def insert(
        self, namespace: Hashable, parent: Node | None, key: tuple[int, ...], pages: list[int], plan: int
    ) -> Node | None:
        """Makes a full page of a sequence known below `parent` (None: the root).

        Args:
            namespace: of the root.
            parent: the node of the page before.
            key: the page's tokens.
            pages: the page of each group, or NO_PAGE where the sequence has freed it.
            plan: number of the first plan that may read them.

        Returns:
            The page's node; None where the rest of the text must stay unknown: the parent has left the tree, no page is
            left to insert, or another sequence holds the tree's page of the same text.
        """
        if parent is None:
            parent = self._roots.get(namespace) or Node(None, namespace, (), [NO_PAGE] * len(self.pools))
        node = parent.children.get(key)
        if not parent.attached or (node is None and all(page == NO_PAGE for page in pages)):
            return None
        if node is not None and any(self._is_taken(node, g) for g in range(len(pages))):
            return None
        self._clock += 1
        if node is None:
            if parent.parent is None:
                self._roots[namespace] = parent
            node = parent.children[key] = Node(parent, namespace, key, [NO_PAGE] * len(pages))
            insort(parent.keys, key)
        node.last_used = self._clock
        for g, page in enumerate(pages):
            if page != NO_PAGE and (node.pages[g] == NO_PAGE or self._windows[g] is None):
                self._drop_page(node, g)
                self._nodes[g][page] = node
                self.pools[g].retain(page)
                node.pages[g] = page
                node.ready = plan
        return node

    def drop(self, namespace: Hashable) -> None:
        """Forgets every text of a namespace."""
        root = self._roots.pop(namespace, None)
        stack = [root] if root else []
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.attached = False
            for g in range(len(self.pools)):
                self._drop_page(node, g)

    def clear(self) -> None:
        """Forgets everything: all pages that no sequence holds are free."""
        for namespace in list(self._roots):
            self.drop(namespace)
        for heap in self._heaps:
            heap.clear()

    def _is_taken(self, node: Node, group: int) -> bool:
        """Whether sequences hold a node's page of a full group."""
        full = self._windows[group] is None and node.pages[group] != NO_PAGE
        return full and self.pools[group].num_holders(node.pages[group]) > 1

    def _first_needed(self, end: int) -> tuple[int, ...]:
        """For each group the page of the first position that the query at position `end` sees."""
        return tuple(0 if w is None else max(0, end - w + 1) // self.page_size for w in self._windows)

    def _likest(self, node: Node, tokens: tuple[int, ...], plan: int) -> tuple[Node | None, int]:
        """The child with the most leading tokens in common, and how many; its neighbours in order cannot beat it."""
        best, most = None, 0
        at = bisect_left(node.keys, tokens) if tokens else 0
        for key in node.keys[max(0, at - 1) : at + 1] if tokens else ():
            common = next((i for i, (a, b) in enumerate(zip(key, tokens, strict=False)) if a != b), len(tokens))
            if common > most and node.children[key].ready <= plan:
                best, most = node.children[key], common
        return best, most

    # Eviction

    def _evictable(self, node: Node, group: int) -> bool:
        page = node.pages[group]
        if page == NO_PAGE or self.pools[group].num_holders(page) != 1:
            return False
        return self._windows[group] is not None or not node.children

    def _queue(self, node: Node, group: int) -> None:
        """Makes a node a candidate, if it is one and not queued yet; one entry a node keeps the heap small."""
        if not node.queued[group] and self._evictable(node, group):
            node.queued[group] = True
            self._serial += 1
            # Among nodes used together, a window group gives up the shallow ones: matches end at the deep ones.
            heappush(self._heaps[group], (node.last_used, node.depth, self._serial, node))

    def _evict(self, group: int) -> bool:
        """Frees the least recently used idle page of a group; O(log n) amortised, as uses pay for stale entries."""
        heap = self._heaps[group]
        while heap:
            last_used, _, _, node = heappop(heap)
            node.queued[group] = False
            if not self._evictable(node, group):
                continue  # it is queued again when it becomes a candidate
            if node.last_used != last_used:
                self._queue(node, group)
                continue
            self._drop_page(node, group)
            self.stats.evictions += 1
            if self._windows[group] is None or self._is_empty(node):
                self._remove(node)
            return True
        return False

    def _drop_page(self, node: Node, group: int) -> None:
        page = node.pages[group]
        if page != NO_PAGE:
            node.pages[group] = NO_PAGE
            del self._nodes[group][page]
            if self.pools[group].release(page) == 0:
                self._idle[group] -= 1

    @staticmethod
    def _is_empty(node: Node) -> bool:
        return not node.children and all(page == NO_PAGE for page in node.pages)

    def _remove(self, node: Node) -> None:
        """Takes a leaf out, and whatever above it has no use without it."""
        while node.parent is not None:
            parent = node.parent
            for g in range(len(self.pools)):
                self._drop_page(node, g)
            node.attached = False
            del parent.children[node.key]
            del parent.keys[bisect_left(parent.keys, node.key)]
            parent.last_used = max(parent.last_used, node.last_used)
            if not self._is_empty(parent):
                for g in range(len(self.pools)):
                    self._queue(parent, g)
                return
            node = parent
        node.attached = False
        self._roots.pop(node.namespace, None)

    # Checks

    def __len__(self) -> int:
        return sum(len(nodes) for nodes in self._nodes[:1])

    def held(self, group: int) -> list[int]:
        """The pages of a group that the tree holds."""
        return list(self._nodes[group])

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: links, keys, pages or counts disagree.
        """
        found: list[set[int]] = [set() for _ in self.pools]
        stack = list(self._roots.values())
        for namespace, root in self._roots.items():
            check(root.namespace == namespace and root.depth == 0 and bool(root.children), "a root is empty")
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if not node.attached or node.keys != sorted(node.children):
                raise IntegrityError("a node thinks that it has left, or its sorted keys are not those of its children")
            for key, child in node.children.items():
                if child.parent is not node or child.key != key or child.depth != node.depth + 1:
                    raise IntegrityError("a child's parent, key or depth is wrong")
                if len(key) != self.page_size or self._is_empty(child):
                    raise IntegrityError("a node is not one page of tokens, or a leaf has no page")
            for g, page in enumerate(node.pages):
                if page == NO_PAGE:
                    check(node.depth == 0 or self._windows[g] is not None, "a page of a full group is missing")
                    continue
                if self._nodes[g].get(page) is not node or page in found[g]:
                    raise IntegrityError(f"page {page} of group {g} is of two nodes")
                found[g].add(page)
                if not node.queued[g] and self._evictable(node, g):
                    raise IntegrityError(f"page {page} of group {g} is idle and could never be evicted")
        for g, pool in enumerate(self.pools):
            check(found[g] == self._nodes[g].keys(), f"group {g} knows pages that are not in the tree")
            idle = sum(pool.num_holders(page) == 1 for page in found[g])
            check(idle == self._idle[g], f"group {g} counts {self._idle[g]} idle pages, there are {idle}")
