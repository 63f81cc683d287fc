"""Ragged attention as one module: writes keys and values into the pages, then attends over each row's.

The cache is the reference backend's, [L, P, page, 2, K, H], and is written in place. Lengths are read on the host, so
that nothing is computed for padding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..base import AttentionSpec
from .names import Tensor, torch

type Fused = Callable[..., Tensor]
"""Attention in one call, as torch's scaled_dot_product_attention is called."""


@dataclass
class _Rows:
    """Where the rows of a step stand, worked out once for all layers.

    `starts`, `lens`: of each row with queries, on the host. `page`, `offset` [n]: where the n new tokens go.
    """

    of: tuple[Tensor, ...]
    rows: list[int]
    starts: list[int]
    counts: list[int]
    lens: list[int]
    page: Tensor
    offset: Tensor
    num_tokens: int
    table: Tensor
    hidden: Tensor | None


class Attention(torch.nn.Module):
    """One `ragged_attention` of a jaxpr, called once for each layer that it stands for.

    Rows of one query are computed together where the program has no others. Beside prompts each row is computed alone,
    so that its numbers do not depend on its neighbours.

    Args:
        spec: the call's.
        sinks, mask: whether these follow the other operands.
        max_query_len: the most queries of a row (None: all tokens).
        fused: what computes it in one call (None: torch's own).
    """

    def __init__(
        self, spec: AttentionSpec, *, sinks: bool, mask: bool, max_query_len: int | None, fused: Fused | None = None
    ) -> None:
        super().__init__()
        self.together = max_query_len == 1 and not mask
        self.spec, self.sinks, self.mask, self.fused = spec, sinks, mask, fused
        self._last: _Rows | None = None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, layer: Tensor, table: Tensor, query_starts: Tensor,
        kv_lens: Tensor, *more: Tensor,
    ) -> Tensor:  # fmt: skip
        """Outputs [T, N, H], zeros at padding."""
        rest = list(more)
        sinks = rest.pop(0) if self.sinks else None
        mask = rest.pop(0) if self.mask else None
        pages = cache[int(layer)]
        at = self._rows(table, query_starts, kv_lens, pages.shape[1])
        n = at.num_tokens
        pages[at.page, at.offset] = torch.stack((k[:n], v[:n]), dim=1).to(pages.dtype)
        out = torch.zeros_like(q)
        if self.together and n:
            out[:n] = self._decode(q[:n], pages, at, sinks)
            return out
        for number, row in enumerate(at.rows):
            first, count = at.starts[number], at.counts[number]
            mine = slice(first, first + count)
            own = None if mask is None else mask[mine]
            out[mine] = self._row(q[mine], pages, table[row], at.lens[number], sinks, own)
        return out

    def _rows(self, table: Tensor, query_starts: Tensor, kv_lens: Tensor, page_size: int) -> _Rows:
        given = (table, query_starts, kv_lens)
        if self._last is not None and all(old is new for old, new in zip(self._last.of, given, strict=True)):
            return self._last
        bounds, lens = query_starts.tolist(), kv_lens.tolist()
        rows = [row for row in range(len(lens)) if bounds[row + 1] > bounds[row] and lens[row] > 0]
        counts = [bounds[row + 1] - bounds[row] for row in rows]
        places = [(row, lens[row] - count + i) for row, count in zip(rows, counts, strict=True) for i in range(count)]
        row_of = torch.tensor([row for row, _ in places], dtype=torch.int64, device=table.device)
        position = torch.tensor([place for _, place in places], dtype=torch.int64, device=table.device)
        used = [lens[row] for row in rows]
        longest = -(-max(used, default=0) // page_size)
        hidden = None
        if rows and min(used) < max(used):
            reach = torch.tensor(used, device=table.device)[:, None]
            hidden = torch.arange(longest * page_size, device=table.device) >= reach
        self._last = _Rows(
            given, rows, [bounds[row] for row in rows], counts, used,
            table[row_of, position // page_size].to(torch.int64), position % page_size, len(places),
            table[torch.tensor(rows, dtype=torch.int64, device=table.device)][:, :longest].to(torch.int64), hidden,
        )  # fmt: skip
        return self._last

    def _decode(self, q: Tensor, pages: Tensor, at: _Rows, sinks: Tensor | None) -> Tensor:
        """A query for each row: q is [n, N, H]."""
        n, num_heads, head_dim = q.shape
        num_kv_heads = pages.shape[3]
        longest = max(at.lens)
        # By position: gathering whole pages, then clearing what was never written, took far longer. What is hidden
        # is read where the row's first key stands: what was never written may hold anything, and 0 * NaN is NaN.
        hidden = None if at.hidden is None else at.hidden[:, :longest]
        position = torch.arange(longest, device=q.device).expand(n, longest)
        position = position if hidden is None else position.masked_fill(hidden, 0)
        size = pages.shape[1]
        place = torch.gather(at.table, 1, position // size) * size + position % size
        read = pages.flatten(0, 1).flatten(1).index_select(0, place.reshape(-1)).to(q.dtype)
        read = read.view(n, longest, 2, num_kv_heads, head_dim)
        keys, values = read[:, :, 0].transpose(1, 2), read[:, :, 1].transpose(1, 2)  # [n, K, S, H]
        if self.spec.window is not None and longest > self.spec.window:
            last = torch.tensor(at.lens, device=q.device)[:, None]
            early = torch.arange(longest, device=q.device) < last - self.spec.window
            hidden = early if hidden is None else hidden | early
        shown = None if hidden is None else ~hidden[:, None, None, :]
        queries = q.reshape(n, num_kv_heads, num_heads // num_kv_heads, head_dim)
        heads = None if sinks is None else sinks.reshape(num_kv_heads, -1, 1)
        return attend(queries, keys, values, shown, self.spec, heads, self.fused).reshape(q.shape)

    def _row(
        self, q: Tensor, pages: Tensor, table: Tensor, kv_len: int, sinks: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """All queries of one row: q is [T, N, H], the last of its kv_len positions."""
        count, num_heads, head_dim = q.shape
        page_size, num_kv_heads = pages.shape[1], pages.shape[3]
        groups = num_heads // num_kv_heads
        window = self.spec.window
        first = 0 if window is None else max(0, kv_len - count - window + 1) // page_size
        ids = table[first : -(-kv_len // page_size)].to(torch.int64)
        read = pages[ids].flatten(0, 1)[: kv_len - first * page_size].to(q.dtype)  # [S, 2, K, H]
        keys, values = read[:, 0].transpose(0, 1), read[:, 1].transpose(0, 1)  # [K, S, H]
        key = torch.arange(first * page_size, kv_len, device=q.device)
        query = torch.arange(kv_len - count, kv_len, device=q.device)[:, None]
        shown = key <= query
        if mask is not None:
            new = key - (kv_len - count)
            seen = mask[:, torch.clamp(new, 0, mask.shape[1] - 1)] & (new < mask.shape[1])
            shown = (new < 0) | seen
        if window is not None:
            shown = shown & (key > query - window)
        # [K, G, T, H] as a batch of K: each KV head's queries, of all its heads, look at the same keys.
        queries = q.transpose(0, 1).reshape(num_kv_heads, groups * count, head_dim)
        shown = shown.repeat(groups, 1)[None, None]
        heads = None if sinks is None else sinks.reshape(num_kv_heads, groups, 1).repeat_interleave(count, dim=1)
        out = attend(queries[None], keys[None], values[None], shown, self.spec, heads, self.fused)
        return out.reshape(num_heads, count, head_dim).transpose(0, 1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, shown: Tensor | None, spec: AttentionSpec, sinks: Tensor | None,
    fused: Fused | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention of q [..., T, H] over k and v [..., S, H] where `shown` [..., T, S] says so.

    In one call of `fused` (torch's own where it is None), unless scores are capped or a sink takes part.
    """
    if spec.soft_cap is None and sinks is None:
        run = fused or torch.nn.functional.scaled_dot_product_attention
        return run(q, k, v, attn_mask=shown, scale=spec.scale)
    scores = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-1, -2)) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    if shown is not None:
        scores = scores.masked_fill(~shown, -math.inf)
    if sinks is not None:
        column = sinks.to(torch.float32).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[-2]]
    return torch.matmul(weights.to(q.dtype).to(torch.float32), v.to(torch.float32)).to(q.dtype)
