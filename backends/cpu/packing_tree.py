"""Which of a decoder's weights are packed, and how."""

from typing import Any

import jax

from ..base import PyTree
from ..quantized import is_quantized
from .packing import pack, pack_int8
from .packing_groups import how_packed, pack_groups


def pack_tree(params: PyTree, dtypes: tuple[str, ...]) -> PyTree:
    """Packs the matrices among a decoder's weights; norms, biases and other leaves stay as they are.

    The leaves' paths tell: projections are called `weight` (those of attention's output contract two axes), tables of
    rows `table`, and an expert's matrices `gate`, `up` and `down`; layers are stacked below `segments`.
    """

    def leaf(path: tuple[Any, ...], weight: Any) -> Any:
        keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        stacked = int(keys[0] == "segments")
        experts = keys[-2:-1] == ["experts"] and keys[-1] in ("gate", "up", "down")
        if str(weight.dtype) not in dtypes or not (experts or keys[-1] in ("weight", "table")):
            return weight
        contracted = 2 if keys[-3:-1] == ["attention", "o"] else 1
        if not is_quantized(weight):
            return pack(weight, stacked + experts, contracted)
        if weight.kind == "int8" and weight.per_channel(contracted):
            return pack_int8(weight, stacked + experts, contracted)
        groups = how_packed(weight, contracted)
        return weight if groups is None else pack_groups(weight, stacked + experts, contracted, groups)

    return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_quantized)
