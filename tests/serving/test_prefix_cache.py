"""The radix tree: what is found, what is kept, and what goes first."""

import pytest

from distaff.serving.page_pool import IntegrityError, PagePool
from distaff.serving.prefix_cache import NO_PAGE, Match, Node, PrefixCache

SIZE = 4


class Texts:
    """A tree over tiny pools, with whole texts put into it as a finished sequence would leave them."""

    def __init__(self, *windows: int | None, num_pages: int = 16, min_copied: int = 1) -> None:
        windows = windows or (None,)
        self.pools = [PagePool(num_pages) for _ in windows]
        self.cache = PrefixCache(self.pools, windows, SIZE, min_copied=min_copied)
        self.plan = 1

    def put(self, text: list[int], namespace: str = "") -> list[list[int]]:
        """Inserts the full pages of a text and lets go of them; returns them for each group."""
        node: Node | None = None
        rows: list[list[int]] = []
        for i in range(len(text) // SIZE):
            pages = [self.page(g) for g in range(len(self.pools))]
            node = self.cache.insert(namespace, node, tuple(text[i * SIZE : (i + 1) * SIZE]), pages, self.plan)
            rows.append(pages)
        for pages in rows:
            for g, page in enumerate(pages):
                self.cache.release(g, page)
        self.cache.check_integrity()
        return [list(row) for row in zip(*rows, strict=True)]

    def page(self, group: int = 0) -> int:
        page = self.cache.alloc(group)
        assert page is not None
        return page

    def match(self, text: list[int], namespace: str = "", limit: int | None = None, unit: int = 1) -> Match:
        return self.cache.match(namespace, text, len(text) if limit is None else limit, self.plan, unit)

    def length(self, text: list[int], namespace: str = "") -> int:
        match = self.match(text, namespace)
        return len(match.nodes) * SIZE + match.num_copied


A, B, C, D = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]


def test_the_longest_known_beginning_is_found_in_full_pages() -> None:
    texts = Texts()
    (pages,) = texts.put(A + B)
    match = texts.match(A + B + C)
    assert [node.key for node in match.nodes] == [tuple(A), tuple(B)]
    assert texts.cache.take(match) == [pages]
    assert all(texts.pools[0].num_holders(page) == 2 for page in pages)
    assert texts.length(C + A) == 0
    assert texts.length(A + C) == SIZE


def test_no_more_is_taken_than_the_limit() -> None:
    texts = Texts()
    texts.put(A + B)
    match = texts.match(A + B, limit=7)
    assert len(match.nodes) == 1 and match.num_copied == 3


def test_a_partly_matching_page_is_to_be_copied() -> None:
    texts = Texts()
    (first,) = texts.put([*A, 5, 6, 0, 0])
    texts.put([*A, 5, 0, 0, 0])
    texts.put([*A, 7, 7, 7, 7])
    match = texts.match(A + B)
    assert match.source is not None and match.source.pages == [first[1]] and match.num_copied == 2
    assert match.without_source is not None and len(match.without_source.nodes) == 1
    assert texts.match([*A, 6, 6, 6, 6]).source is None


@pytest.mark.parametrize(
    ("unit", "known", "pages", "copied"),
    [(1, 11, 2, 3), (4, 11, 2, 0), (6, 11, 0, 0), (6, 12, 3, 0), (8, 11, 2, 0), (8, 7, 0, 0), (3, 11, 2, 1),
     (16, 11, 0, 0)],
)  # fmt: skip
def test_a_match_is_a_multiple_of_the_unit(unit: int, known: int, pages: int, copied: int) -> None:
    texts = Texts()
    texts.put([*(A + B + C)[:known], *[0] * (12 - known)])
    match = texts.match(A + B + C, unit=unit)
    assert (len(match.nodes), match.num_copied) == (pages, copied)
    assert match.without_source is None or match.without_source.num_copied == 0


def test_few_common_tokens_are_not_worth_a_copy() -> None:
    texts = Texts(min_copied=3)
    texts.put(A)
    assert texts.match([1, 2, 0, 0]).source is None
    assert texts.match([1, 2, 3, 0]).num_copied == 3


def test_the_likest_of_many_pages_is_found() -> None:
    texts = Texts(num_pages=600)
    for i in range(500):
        texts.put([i % 5, i // 5 % 10, i // 50, i])
    match = texts.match([3, 7, 4, 0])
    assert match.source is not None and match.source.key[:3] == (3, 7, 4) and match.num_copied == 3


def test_namespaces_do_not_meet() -> None:
    texts = Texts()
    texts.put(A + B, "a")
    assert texts.length(A + B, "b") == 0
    assert texts.length(A + B, "a") == 8
    texts.cache.drop("a")
    texts.cache.check_integrity()
    assert texts.length(A + B, "a") == 0 and texts.pools[0].num_free == 16


def test_pages_of_this_very_plan_are_in_flight() -> None:
    texts = Texts()
    texts.put(A)
    texts.plan = 2
    texts.put(A + B)
    texts.plan = 1
    match = texts.match(A + B)
    assert match.in_flight
    texts.plan = 2
    assert not texts.match(A + B).in_flight and texts.length(A + B) == 8


def test_a_window_needs_only_the_pages_before_the_end() -> None:
    texts = Texts(None, 5)
    full, windowed = texts.put(A + B + C + D)
    match = texts.match(A + B + C + D)
    # The query at position 16 sees positions 12 to 16: the last page is enough.
    assert match.first == (0, 3)
    assert texts.cache.take(match) == [full, [NO_PAGE, NO_PAGE, NO_PAGE, windowed[3]]]


@pytest.mark.parametrize(
    ("window", "lost", "length"), [(5, 3, 12), (5, 2, 16), (6, 2, 8), (6, 1, 16), (9, 2, 8), (20, 0, 0)]
)
def test_a_match_ends_where_every_group_has_what_it_needs(window: int, lost: int, length: int) -> None:
    texts = Texts(None, window)
    texts.put(A + B + C + D)
    for node in texts.match(A + B + C + D).nodes:
        if node.depth == lost + 1:
            texts.cache._drop_page(node, 1)
    texts.cache.check_integrity()
    assert texts.length(A + B + C + D) == length


def test_a_page_lost_by_a_window_is_given_again() -> None:
    texts = Texts(None, 5)
    texts.put(A + B)
    node = texts.match(A + B).nodes[1]
    texts.cache._drop_page(node, 1)
    assert texts.length(A + B) == 4
    texts.put(A + B)
    assert texts.length(A + B) == 8


def test_the_least_recently_used_leaf_goes_first() -> None:
    texts = Texts(num_pages=4)
    texts.put(A + B)
    texts.put(A + C)
    texts.put(D)
    texts.match(A + B)
    assert texts.cache.available(0) == 4
    texts.page()
    assert texts.length(A + C) == 4, "the only leaf not used since"
    texts.page()
    assert texts.length(D) == 0 and texts.length(A + B) == 8
    texts.page()
    assert texts.length(A + B) == 4
    texts.page()
    assert texts.length(A) == 0 and texts.cache.alloc(0) is None
    assert texts.cache.stats.evictions == 4
    texts.cache.check_integrity()


def test_pages_that_sequences_hold_are_not_evicted() -> None:
    texts = Texts(num_pages=3)
    texts.put(A + B)
    held = texts.cache.take(texts.match(A + B))
    assert texts.cache.available(0) == 1
    texts.page()
    assert texts.cache.alloc(0) is None
    for page in held[0]:
        texts.cache.release(0, page)
    assert texts.cache.available(0) == 2
    texts.page()
    assert texts.length(A + B) == 4


def test_a_window_gives_up_inner_pages_without_losing_the_text() -> None:
    texts = Texts(None, 5, num_pages=4)
    texts.put(A + B + C + D)
    for _ in range(3):
        texts.page(1)
    assert texts.length(A + B + C + D) == 16, "the last page is all that the window needs"
    texts.page(1)
    assert texts.length(A + B + C + D) == 0, "with no page of the window left, nothing but the start is known"
    assert texts.cache.available(0) == 4
    texts.cache.check_integrity()


def test_a_text_of_windows_alone_leaves_with_its_last_page() -> None:
    texts = Texts(5, num_pages=2)
    texts.put(A + B)
    texts.page()
    assert texts.length(A + B) == 8
    texts.page()
    assert texts.length(A + B) == 0
    texts.cache.check_integrity()


def test_nothing_is_put_below_a_page_that_has_gone() -> None:
    texts = Texts()
    texts.put(A)
    node = texts.match(A).nodes[0]
    texts.cache.clear()
    page = texts.page()
    assert texts.cache.insert("", node, tuple(B), [page], 1) is None
    texts.cache.release(0, page)
    texts.cache.check_integrity()
    assert texts.pools[0].num_free == 16


def test_whoever_goes_on_below_a_page_holds_it() -> None:
    """Otherwise an idle page could stand above one that is held, and could not be evicted."""
    texts = Texts()
    (old,) = texts.put(A)
    mine = texts.page()
    node = texts.cache.insert("", None, tuple(A), [mine], 1)
    assert node is not None and node.pages == [mine], "an idle page gives way"
    assert texts.pools[0].num_holders(old[0]) == 0
    other = texts.page()
    assert texts.cache.insert("", None, tuple(A), [other], 1) is None, "one that is held does not"
    texts.cache.check_integrity()


def test_integrity_finds_a_lost_link() -> None:
    texts = Texts()
    texts.put(A + B)
    texts.match(A).nodes[0].keys.clear()
    with pytest.raises(IntegrityError, match="sorted keys"):
        texts.cache.check_integrity()


def test_the_queue_for_eviction_does_not_grow_with_use() -> None:
    texts = Texts()
    texts.put(A + B)
    for _ in range(100):
        held = texts.cache.take(texts.match(A + B))
        for page in held[0]:
            texts.cache.release(0, page)
    assert len(texts.cache._heaps[0]) <= 2
