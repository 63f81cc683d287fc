"""The router's memory of prompts: it knows what was sent where, and no more."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.serving.route.prefix_map import BLOCK_BYTES, BYTES_PER_TOKEN, PrefixMap, blocks_of

TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN


def prompt(*blocks: int, rest: bytes = b"", salt: bytes = b"") -> tuple[bytes, ...]:
    return tuple(blocks_of(b"".join(bytes([block]) * BLOCK_BYTES for block in blocks) + rest, salt))


def test_the_longest_beginning_counts() -> None:
    known = PrefixMap()
    known.remember("a", prompt(1, 2, 3))
    known.remember("b", prompt(1, 2))
    assert known.matches(prompt(1, 2, 3, 4)) == {"a": 3 * TOKENS, "b": 2 * TOKENS}
    assert known.matches(prompt(1, 2, rest=b"half")) == {"a": 2 * TOKENS, "b": 2 * TOKENS}
    assert known.matches(prompt(2, 3)) == {} == known.matches(prompt(rest=b"short"))
    assert known.matches(prompt(1, 3, 3)) == {"a": TOKENS, "b": TOKENS}  # a block counts behind its own prefix only


def test_salts_keep_prompts_apart() -> None:
    known = PrefixMap()
    known.remember("a", prompt(1, salt=b"salt"))
    assert known.matches(prompt(1)) == {} and known.matches(prompt(1, salt=b"salt")) == {"a": TOKENS}


def test_a_server_that_was_started_anew_knows_nothing() -> None:
    known = PrefixMap()
    known.remember("a", prompt(1, 2))
    known.remember("b", prompt(1))
    known.forget("a")
    assert known.matches(prompt(1, 2)) == {"b": TOKENS} and len(known) == 1


def test_it_forgets_what_was_not_used_for_longest() -> None:
    known = PrefixMap(max_blocks=4)
    known.remember("a", prompt(1, 2))
    known.remember("a", prompt(3, 4))
    known.matches(prompt(1, 2))
    known.remember("a", prompt(5))
    assert len(known) == 4
    assert known.matches(prompt(1, 2)) == {"a": 2 * TOKENS} and known.matches(prompt(3, 4)) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 2), max_size=5)), max_size=12), st.data())
@settings(max_examples=60)
def test_it_is_the_longest_common_prefix_of_what_was_sent(
    sent: list[tuple[str, list[int]]], data: st.DataObject
) -> None:
    known = PrefixMap()
    for server, blocks in sent:
        known.remember(server, prompt(*blocks))
    asked = data.draw(st.lists(st.integers(0, 2), max_size=5))

    def common(blocks: list[int]) -> int:
        return next(
            (at for at, (x, y) in enumerate(zip(blocks, asked, strict=False)) if x != y), min(len(blocks), len(asked))
        )

    want = {server: max(common(blocks) for name, blocks in sent if name == server) * TOKENS for server, _ in sent}
    assert known.matches(prompt(*asked)) == {server: tokens for server, tokens in want.items() if tokens}


def test_long_prompts_cost_a_bounded_time() -> None:
    known, long = PrefixMap(), tuple(blocks_of(random.Random(0).randbytes(10_000_000)))
    known.remember("a", long)
    assert len(known) <= 2048 and known.matches(long)["a"] == 2048 * TOKENS
