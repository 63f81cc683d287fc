"""Ragged attention in shapes that never change, for devices where reading a length would mean waiting.

As the reference: queries are padded to a rectangle, and every page of a row is gathered.
"""

from ..base import AttentionSpec
from .attention import Fused, attend
from .names import Tensor, torch


class StaticAttention(torch.nn.Module):
    """One `ragged_attention` of a jaxpr, without a look at any value.

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
        self.spec, self.sinks, self.mask = spec, sinks, mask
        self.max_query_len, self.fused = max_query_len, fused

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, layer: Tensor, table: Tensor, query_starts: Tensor,
        kv_lens: Tensor, *more: Tensor,
    ) -> Tensor:  # fmt: skip
        """Outputs [T, N, H], zeros at padding."""
        rest = list(more)
        sinks = rest.pop(0) if self.sinks else None
        mask = rest.pop(0) if self.mask else None
        num_tokens, num_heads, head_dim = q.shape
        num_rows, num_kv_heads, page_size = kv_lens.shape[0], k.shape[1], cache.shape[2]
        table, starts, lens = table.long(), query_starts.long(), kv_lens.long()
        token = torch.arange(num_tokens, device=q.device)
        row = (token[:, None] >= starts[None, 1:]).sum(dim=1)
        padding = row >= num_rows
        row = torch.clamp(row, max=num_rows - 1)
        offset = token - starts[row]
        counts = starts[1:] - starts[:-1]
        position = torch.where(padding, 0, lens[row] - counts[row] + offset)
        self._write(cache, k, v, layer, table[row, position // page_size], position % page_size, padding)

        queries = min(self.max_query_len or num_tokens, num_tokens)
        slot = torch.arange(queries, device=q.device)
        at = torch.clamp(starts[:-1, None] + slot, 0, num_tokens - 1)  # [B, Q]
        read = cache[layer.long().reshape(1, 1), table].flatten(1, 2).to(q.dtype)  # [B, S, 2, K, H]
        key = torch.arange(read.shape[1], device=q.device)
        written = key < lens[:, None]  # [B, S]
        # Positions that were never written may hold anything, and 0 * NaN is NaN.
        read = torch.where(written[..., None, None, None], read, 0)
        keys, values = read[:, :, 0].transpose(1, 2), read[:, :, 1].transpose(1, 2)
        query = (lens - counts)[:, None] + slot  # positions [B, Q]
        if mask is None:
            shown = key <= query[..., None]
        else:
            new = key - (lens - counts)[:, None]
            seen = torch.take_along_dim(mask[at], torch.clamp(new, 0, mask.shape[1] - 1)[:, None], dim=2)
            shown = (new < 0)[:, None] | (seen & (new < mask.shape[1])[:, None])
        shown = shown & written[:, None]
        if self.spec.window is not None:
            shown = shown & (key > query[..., None] - self.spec.window)
        groups = num_heads // num_kv_heads
        heads = q[at].reshape(num_rows, queries, num_kv_heads, groups, head_dim).permute(0, 2, 3, 1, 4)
        shown = shown[:, None, None].expand(num_rows, 1, groups, *shown.shape[1:]).flatten(2, 3)
        # Rows that see nothing (padding) look at everything: their output is not kept, and must not be NaN.
        shown = shown | ~shown.any(dim=-1, keepdim=True)
        sink = None
        if sinks is not None:
            sink = sinks.reshape(num_kv_heads, groups, 1, 1).expand(-1, -1, queries, -1).flatten(1, 2)
        out = attend(heads.flatten(2, 3), keys, values, shown, self.spec, sink, self.fused)
        out = out.reshape(num_rows, num_kv_heads, groups, queries, head_dim).permute(0, 3, 1, 2, 4)
        mine = out.flatten(2, 3)[row, torch.clamp(offset, 0, queries - 1)]
        return torch.where(padding[:, None, None], 0, mine).to(q.dtype)

    def _write(
        self, cache: Tensor, k: Tensor, v: Tensor, layer: Tensor, page: Tensor, place: Tensor, padding: Tensor
    ) -> None:
        """Padding writes what the first token writes, to its place; where all is padding, what stands there."""
        layer = layer.long().reshape(1).expand(page.shape)
        page, place = torch.where(padding, page[:1], page), torch.where(padding, place[:1], place)
        new = torch.stack((k, v), dim=1).to(cache.dtype)
        old = cache[layer[:1], page[:1], place[:1]]
        first = torch.where(padding[:1, None, None, None], old, new[:1])
        new = torch.where(padding[:, None, None, None], first, new)
        cache.index_put_((layer, page, place), new)
