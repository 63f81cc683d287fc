"""Ragged attention as one module: writes keys and values into the pages, then attends over each row's.

The cache is the reference backend's, [L, P, page, 2, K, H], perhaps with scales, and is written in place. Lengths are
read on the host, so that nothing is computed for padding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..base import AttentionSpec
from ..token_scales import LARGEST, LEAST
from .names import DType, Tensor, torch

type Fused = Callable[..., Tensor]
"""Attention in one call, as torch's scaled_dot_product_attention is called."""

_BLOCK = 64
"""Queries of a prompt that are computed in one call, so that keys behind them are left out: torch's kernel on the host
computes what a mask hides."""


@dataclass
class _Rows:
    """Where the rows of a step stand, worked out once for all layers.

    `starts`, `counts`: queries of each row that has any, on the host. `written` [n]: where the n new tokens go, counted
    through all pages. `read` [rows * S] and `shown` [rows, 1, 1, S] (None: all): where the keys of rows that are
    computed together stand, S for each, and which of them count; `alone`: the same of each other row, [S] and [T, S].
    """

    of: tuple[Tensor | None, ...]
    starts: list[int]
    counts: list[int]
    written: Tensor
    num_tokens: int
    read: Tensor | None = None
    shown: Tensor | None = None
    alone: Sequence[tuple[Tensor, Tensor]] = ()


class Attention(torch.nn.Module):
    """One `ragged_attention` of a jaxpr, called once for each layer that it stands for.

    Rows of one query are computed together where the program has no others. Beside prompts each row is computed alone,
    so that its numbers do not depend on its neighbours.

    Args:
        spec: the call's.
        sinks, mask: whether these follow the other operands.
        max_query_len: the most queries of a row (None: all tokens).
        fused: what computes it in one call (None: torch's own).
        scaled: whether the scales of the cache's tokens, [L, P, 2, page], follow it.
    """

    def __init__(
        self, spec: AttentionSpec, *, sinks: bool, mask: bool, max_query_len: int | None, fused: Fused | None = None,
        scaled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scaled = scaled
        self.together = max_query_len == 1 and not mask
        self.spec, self.sinks, self.mask, self.fused = spec, sinks, mask, fused
        self._last: _Rows | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, *more: Tensor) -> Tensor:
        """Outputs [T, N, H], zeros at padding."""
        rest = list(more)
        scales = rest.pop(0) if self.scaled else None
        layer, table, query_starts, kv_lens = (rest.pop(0) for _ in range(4))
        sinks = rest.pop(0) if self.sinks else None
        mask = rest.pop(0) if self.mask else None
        pages = cache[int(layer)]
        at = self._rows((table, query_starts, kv_lens, mask), pages.shape[1], q.dtype)
        n, held = at.num_tokens, Held(pages, None if scales is None else scales[int(layer)])
        held.write(at.written, torch.stack((k[:n], v[:n]), dim=1))
        if at.read is not None and n == q.shape[0]:
            return self._decode(q, held, at, sinks)
        out = torch.zeros_like(q)
        if at.read is not None:
            out[:n] = self._decode(q[:n], held, at, sinks)
            return out
        for first, count, (places, shown) in zip(at.starts, at.counts, at.alone, strict=True):
            mine = slice(first, first + count)
            out[mine] = self._row(q[mine], held.read(places, q.dtype), shown, sinks)
        return out

    def _rows(self, given: tuple[Tensor | None, ...], page_size: int, dtype: DType) -> _Rows:
        if self._last is not None and all(old is new for old, new in zip(self._last.of, given, strict=True)):
            return self._last
        table, query_starts, kv_lens, mask = given
        assert table is not None and query_starts is not None and kv_lens is not None
        bounds, lens = query_starts.tolist(), kv_lens.tolist()
        rows = [row for row in range(len(lens)) if bounds[row + 1] > bounds[row] and lens[row] > 0]
        counts = [bounds[row + 1] - bounds[row] for row in rows]
        used = [lens[row] for row in rows]
        pages = table[torch.tensor(rows, dtype=torch.int64)][:, : -(-max(used, default=0) // page_size)].to(torch.int64)
        place = (pages[:, :, None] * page_size + torch.arange(page_size)).flatten(1)  # of each position of a row
        new = [place[number, end - count : end] for number, (end, count) in enumerate(zip(used, counts, strict=True))]
        written = torch.cat(new) if new else place.flatten()
        at = self._last = _Rows(given, [bounds[row] for row in rows], counts, written, len(written))
        if self.together and rows:
            at.read, at.shown = self._seen(place, torch.tensor(used)[:, None])
        elif rows:
            own = [None if mask is None else mask[bounds[row] : bounds[row + 1]] for row in rows]
            each = zip(place, counts, used, own, strict=True)
            at.alone = [self._seen_alone(*one, dtype) for one in each]
        return at

    def _seen(self, place: Tensor, lens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where rows of one query look, of places [rows, S'] and lengths [rows, 1]; and what of that counts."""
        longest = int(lens.max())
        position = torch.arange(longest)
        hidden = position >= lens
        if self.spec.window is not None:
            hidden = hidden | (position < lens - self.spec.window)
        if not hidden.any():
            return place[:, :longest].reshape(-1), None
        # What is hidden is read where the row's last key stands: what was never written, or is another text's by now,
        # may hold anything, and 0 * NaN is NaN.
        return torch.gather(place, 1, torch.where(hidden, lens - 1, position)).reshape(-1), ~hidden[:, None, None]

    def _decode(self, q: Tensor, held: "Held", at: _Rows, sinks: Tensor | None) -> Tensor:
        """A query for each row: q is [n, N, H]."""
        n, num_heads, head_dim = q.shape
        assert at.read is not None
        # By position: gathering whole pages took far longer.
        read = held.read(at.read, q.dtype).view(n, len(at.read) // n, 2, -1, head_dim)
        keys, values = read[:, :, 0].transpose(1, 2), read[:, :, 1].transpose(1, 2)  # [n, K, S, H]
        num_kv_heads = keys.shape[1]
        queries = q.reshape(n, num_kv_heads, num_heads // num_kv_heads, head_dim)
        heads = None if sinks is None else sinks.reshape(num_kv_heads, -1, 1)
        return attend(queries, keys, values, at.shown, self.spec, heads, self.fused).reshape(q.shape)

    def _seen_alone(
        self, place: Tensor, count: int, kv_len: int, mask: Tensor | None, dtype: DType
    ) -> tuple[Tensor, Tensor]:
        """Where the last `count` positions of a row look, of its places [S'], and what each of them sees of that."""
        start, window = kv_len - count, self.spec.window
        first = 0 if window is None else max(0, start - window + 1)
        key, query = torch.arange(first, kv_len), torch.arange(start, kv_len)[:, None]
        shown = key <= query
        if mask is not None:
            new = key - start
            seen = mask[:, torch.clamp(new, 0, mask.shape[1] - 1)] & (new < mask.shape[1])
            shown = (new < 0) | seen
        if window is not None:
            shown = shown & (key > query - window)
        if self.spec.soft_cap is None and not self.sinks:  # or each layer would make numbers of truth values
            shown = torch.zeros(shown.shape, dtype=dtype).masked_fill_(~shown, -math.inf)
        return place[first:kv_len], shown

    def _row(self, q: Tensor, read: Tensor, shown: Tensor, sinks: Tensor | None) -> Tensor:
        """All queries of one row: q is [T, N, H], `read` the keys and values of S positions."""
        (count, num_heads, head_dim), size, window = q.shape, read.shape[0], self.spec.window
        keys, values = read.view(size, 2, -1, head_dim).permute(1, 2, 0, 3)[:, :, None]  # [K, 1, S, H]
        num_kv_heads = keys.shape[0]
        # [K, G, T, H]: the heads of a KV head look at the same keys.
        queries = q.transpose(0, 1).reshape(num_kv_heads, num_heads // num_kv_heads, count, head_dim)
        heads = None if sinks is None else sinks.reshape(num_kv_heads, -1, 1, 1)
        ahead = size - count  # keys in front of the first query's own
        block = count if self.mask else _BLOCK  # a caller's mask may show later ones
        outs: list[Tensor] = []
        for first in range(0, count, block):
            last = min(first + block, count)
            low = 0 if window is None else max(0, ahead + first - window + 1)
            seen = slice(low, ahead + last)
            shape = (*queries.shape[:2], seen.stop - low, head_dim)
            k, v = (each[:, :, seen].expand(shape) for each in (keys, values))
            outs.append(attend(queries[:, :, first:last], k, v, shown[first:last, seen], self.spec, heads, self.fused))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
        return out.reshape(num_heads, count, head_dim).transpose(0, 1)


class Held:
    """The keys and values of a layer, a position's [2, K, H] side by side, and the scales of its tokens if they have
    some (backends/token_scales.py).

    Args:
        pages: [P, page, 2, K, H].
        scales: [P, 2, page].
    """

    def __init__(self, pages: Tensor, scales: Tensor | None) -> None:
        self.dtype, self.page, self.scales = pages.dtype, pages.shape[1], scales
        # torch copies floats of 8 bits by nothing but their bytes.
        self.numbers = pages.view(pages.shape[0] * pages.shape[1], -1).view(_CARRIERS.get(pages.dtype, pages.dtype))

    def write(self, places: Tensor, new: Tensor) -> None:
        """Keys and values [n, 2, K, H], to places counted through all pages."""
        if self.scales is not None:
            wide, largest = new.to(torch.float32), LARGEST[str(self.dtype).removeprefix("torch.")]
            scales = torch.clamp(wide.abs().amax(dim=(2, 3)) / largest, min=LEAST)
            self.scales[self._at(places)] = scales
            wide = wide / scales[..., None, None]
            new = torch.clamp(wide if self.dtype.is_floating_point else torch.round(wide), -largest, largest)
        self.numbers.index_copy_(0, places, new.flatten(1).to(self.dtype).view(self.numbers.dtype))

    def read(self, places: Tensor, dtype: DType) -> Tensor:
        """What stands there [S, 2 K H]."""
        numbers = self.numbers.index_select(0, places).view(self.dtype)
        if self.scales is None:
            return numbers.to(dtype)
        wide = numbers.to(torch.float32).view(len(places), 2, -1) * self.scales[self._at(places)][..., None]
        return wide.flatten(1).to(dtype)

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the scales of tokens stand, [S, 2]."""
        return (places // self.page)[:, None], torch.arange(2), (places % self.page)[:, None]


_CARRIERS = {torch.float8_e4m3fn: torch.uint8}


def attend(
    q: Tensor, k: Tensor, v: Tensor, shown: Tensor | None, spec: AttentionSpec, sinks: Tensor | None,
    fused: Fused | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention of q [..., T, H] over k and v [..., S, H] where `shown` [..., T, S] says so, or with it added
    to the scores, which only what is computed in one call takes.

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
