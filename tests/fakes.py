"""A model whose arithmetic is done by hand, behind the surface of serving/programs.py.

The fake cache holds at each (page, offset) of each group the token written there, its position and a running hash of
the text up to it, which is read back through the page table when the next position is written. The next token is

    (31 * sum of the tokens that each group sees + 7 * position + hash of the text + seed) mod V

so a wrong page table, a lost copy, a page shared with another prefix or a wrong chunk changes the tokens.
`continuation` computes the same from a plain list.
"""

from collections.abc import Sequence as Row
from typing import Any

import numpy as np

from distaff.backends.base import CacheGroup
from distaff.models.logprobs import MAX_LOGPROBS, TokenLogprobs
from distaff.models.step import PromptOutput, StepBatch, StepOutput
from distaff.serving.plan import Bucket

_MODULUS = 2**31 - 1


def hashed(previous: int, token: int) -> int:
    return (previous * 1_000_003 + token + 1) % _MODULUS


def next_token(visible: Row[Row[int]], position: int, text_hash: int, seed: int, vocab_size: int) -> int:
    """`visible` holds the tokens that each group sees from the position before."""
    return (31 * sum(map(sum, visible)) + 7 * position + text_hash + seed) % vocab_size


def continuation(
    prompt: Row[int], max_len: int, seed: int, *, windows: Row[int | None], vocab_size: int, eos: int | None = None
) -> list[int]:
    """Prompt and answer, computed without pages, up to max_len tokens or the first `eos`."""
    text, text_hash = list(prompt), 0
    for token in text:
        text_hash = hashed(text_hash, token)
    while len(text) < max_len:
        visible = [text if window is None else text[-window:] for window in windows]
        token = next_token(visible, len(text), text_hash, seed, vocab_size)
        text.append(token)
        text_hash = hashed(text_hash, token)
        if token == eos:
            break
    return text


def prompt_logprob(token: int) -> float:
    """What the fake model says of a token that follows in the prompt, and of one that it has drawn."""
    return -(token + 1) / 16


class FakePrograms:
    """Programs without a device: asserts that nothing is read that was not written for this text."""

    def __init__(
        self,
        buckets: Row[Bucket],
        *,
        num_slots: int,
        max_len: int,
        page_size: int,
        num_pages: Row[int],
        windows: Row[int | None],
        vocab_size: int = 101,
    ) -> None:
        self.buckets = tuple(buckets)
        self.num_slots = num_slots
        self.max_len = max_len
        self.page_size = page_size
        self.num_pages = tuple(num_pages)
        self.groups = tuple(CacheGroup(num_layers=1, num_kv_heads=1, head_dim=1, window=w) for w in windows)
        self.vocab_size = vocab_size
        self.compile_seconds = 0.0
        self.is_warm = True
        self.reset()

    def reset(self) -> None:
        """Everything written is lost."""
        # token, position (-1: never written), hash
        self._cache = [np.full((count, self.page_size, 3), -1, np.int64) for count in self.num_pages]
        self._history = np.full((self.num_slots, self.max_len), -1, np.int64)
        self._seeds: dict[int, int] = {}
        self._stop_ids: dict[int, set[int]] = {}
        self._ended: set[int] = set()

    def close(self) -> None:
        self._cache = []

    def warm_up(self) -> None:
        """Everything is compiled."""

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, Any]]) -> None:
        assert len(set(slots)) == len(slots)
        for slot, text, row in zip(slots, histories, rows, strict=True):
            assert 0 <= slot < self.num_slots and 0 < len(text) <= self.max_len
            self._history[slot] = -1
            self._history[slot, : len(text)] = text
            self._seeds[slot] = int(np.asarray(row["seeds"]).ravel()[0]) + int(row.get("choices", 0))
            self._ended.discard(slot)
            self._stop_ids[slot] = {int(token) for token in np.ravel(row.get("stop_ids", ())) if token >= 0}

    def copy_pages(self, copies: tuple[list[tuple[int, int]], ...]) -> None:
        for cache, pairs in zip(self._cache, copies, strict=True):
            destinations = [destination for _, destination in pairs]
            assert len(set(destinations)) == len(destinations)
            assert not set(destinations) & {source for source, _ in pairs}
            for source, destination in pairs:
                cache[destination] = cache[source]

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        """Hidden states are (token, position), see also `prompt_logprob`."""
        assert bucket in self.buckets, f"{bucket} is not compiled"
        slots, starts, kv_lens = np.asarray(batch.slots), np.asarray(batch.query_starts), np.asarray(batch.kv_lens)
        draws, num_steps = np.asarray(batch.draws), int(batch.num_steps)
        assert slots.shape == (bucket.num_rows,) and starts[0] == 0 and starts[-1] <= bucket.num_tokens
        counts = np.diff(starts)
        used = slots < self.num_slots
        assert (counts[used] > 0).all() and (counts[~used] == 0).all() and not kv_lens[~used].any()
        assert not draws[~used].any() and len(set(slots[used].tolist())) == used.sum()
        assert num_steps >= 1 and (num_steps == 1 or (bucket.kind == "decode" and draws[used].all()))
        assert bucket.kind != "decode" or (counts <= 1).all()
        tokens = np.full((bucket.num_rows, num_steps), -1, np.int64)
        stopped: set[int] = set()
        for k in range(num_steps):  # or until every row has drawn a stop token, as the real step
            written: list[set[int]] = [set() for _ in self.groups]
            read: list[set[int]] = [set() for _ in self.groups]  # rows of a step run at once: no page is both
            for b in np.flatnonzero(used):
                end = int(kv_lens[b]) + k
                first = end - int(counts[b])
                tables = [np.asarray(table)[b] for table in batch.page_tables]
                for g, table in enumerate(tables):
                    window = self.groups[g].window
                    far = 0 if window is None else max(0, first + 1 - window)
                    own = set(table[first // self.page_size : (end - 1) // self.page_size + 1].tolist())
                    seen = set(table[far // self.page_size : -(-first // self.page_size)].tolist()) - own
                    assert not own & (written[g] | read[g]) and not seen & written[g], f"group {g}: a page of two rows"
                    written[g] |= own
                    read[g] |= seen
                if int(slots[b]) in self._ended:  # dispatched before the host knew: it writes and draws nonsense
                    self._spoil(first, end, tables)
                    tokens[b, k] = 0
                    continue
                token = self._row(int(slots[b]), first, end, tables)
                if draws[b]:
                    assert end < self.max_len and self._history[slots[b], end] == -1
                    self._history[slots[b], end] = tokens[b, k] = token
            rows = slots[used].tolist()
            stopped |= {
                slot for slot, token in zip(rows, tokens[used, k], strict=True) if token in self._stop_ids[slot]
            }
            if stopped == set(rows):
                break
        self._ended |= stopped
        prompt = None
        if bucket.kind == "prompt":
            prompt = self._prompt(bucket, slots, starts, kv_lens)
        return StepOutput(tokens, np.ones(bucket.num_rows, np.int32), _logprobs(tokens), prompt, None)  # pyright: ignore[reportArgumentType]

    def _prompt(self, bucket: Bucket, slots: np.ndarray, starts: np.ndarray, kv_lens: np.ndarray) -> PromptOutput:
        following = np.zeros(bucket.num_tokens, np.int64)
        hidden_sum, hidden_last = np.zeros((bucket.num_rows, 2)), np.zeros((bucket.num_rows, 2))
        for b in np.flatnonzero(slots < self.num_slots):
            end, count = int(kv_lens[b]), int(starts[b + 1] - starts[b])
            text, positions = self._history[slots[b]], np.arange(end - count, end)
            following[starts[b] : starts[b + 1]] = text[np.minimum(positions + 1, self.max_len - 1)]
            hidden = np.stack([text[positions], positions], axis=1)
            hidden_sum[b], hidden_last[b] = hidden.sum(axis=0), hidden[-1]
        return PromptOutput(_logprobs(following), hidden_sum, hidden_last)  # pyright: ignore[reportArgumentType]

    def _row(self, slot: int, first: int, end: int, tables: list[np.ndarray]) -> int:
        """Writes positions first : end of a row and returns the token that would stand at `end`."""
        text = self._history[slot, first:end]
        assert (text >= 0).all(), "the history ends before the row"
        visible, text_hash = [], 0
        for group, cache, table in zip(self.groups, self._cache, tables, strict=True):
            text_hash = 0
            if first > 0:
                _, position, text_hash = self._read(cache, table, first - 1).tolist()
                assert position == first - 1, f"position {first - 1} is not in its page"
            for position, token in enumerate(text.tolist(), first):
                text_hash = hashed(text_hash, token)
                page = table[position // self.page_size]
                assert 0 <= page < len(cache), f"position {position} has no page"
                cache[page, position % self.page_size] = token, position, text_hash
            begin = 0 if group.window is None else max(0, end - group.window)
            seen = self._read(cache, table, np.arange(begin, end))
            assert (seen[:, 1] == np.arange(begin, end)).all(), "a position that was not written is read"
            visible.append(seen[:, 0].tolist())
            # The first query of the row sees the farthest back.
            far = 0 if group.window is None else max(0, first + 1 - group.window)
            seen = self._read(cache, table, np.arange(far, first))
            assert (seen[:, 1] == np.arange(far, first)).all(), "a position of the first query's window is lost"
        return next_token(visible, end, text_hash, self._seeds[slot], self.vocab_size)

    def _spoil(self, first: int, end: int, tables: list[np.ndarray]) -> None:
        for cache, table in zip(self._cache, tables, strict=True):
            for position in range(first, end):
                cache[table[position // self.page_size], position % self.page_size] = -7, -7, -7

    def _read(self, cache: np.ndarray, table: np.ndarray, positions: Any) -> np.ndarray:
        """[..., 3] of positions, through the page table."""
        pages = table[positions // self.page_size]
        assert np.all(pages >= 0), "a freed page is read"
        return cache[pages, positions % self.page_size]


def _logprobs(tokens: np.ndarray) -> TokenLogprobs:
    top = np.zeros((*tokens.shape, MAX_LOGPROBS))
    ranks = np.ones(tokens.shape, np.int32)
    return TokenLogprobs(-(tokens + 1) / 16, ranks, top.astype(np.int32), top)  # pyright: ignore[reportArgumentType]
