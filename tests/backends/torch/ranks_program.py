"""One of several processes that run a model under a layout, each a device's part of it, by torch.distributed (gloo).

python -m tests.backends.torch.ranks_program RANK FILE [CASE LAYOUT]...

FILE is where the processes meet. Each prints, as JSON, how far what it gets from every collective is from what JAX
gives its device; and for each case how far its logits and tokens are from those of one device by JAX.
"""

import importlib
import json
import math
import os
import sys
from functools import partial
from typing import Any

os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch.backend import TorchBackend
from distaff.backends.torch.ranks import Ranks
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights
from distaff.models.kv_cache import allocate_cache
from distaff.models.step import Step
from distaff.sharding.layout import Layout
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout
from distaff.sharding.ranked import RankedBackend

from ...models.step_inputs import row_state, step_batch
from ...sharding.tiny import tiny


def steps(config: ModelConfig, weights: Weights, backend: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens and logits of two prompts and of the step after them."""
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 24).tolist()
    state: Any = row_state([ids[:13], ids[13:]], config.vocab_size, temperature=[0.0, 1.0], top_k=[0, 5])
    pages = [4] * len(config.cache_groups)
    cache: Any = allocate_cache(config, backend, num_pages=pages, page_size=16, dtype=jnp.float32)
    held, tokens, logits = backend.prepare_params(weights), [], []
    for spans, count in (([(0, 13), (0, 11)], 24), ([(13, 14), (11, 12)], 2)):
        step = Step(config, backend, num_tokens=count, num_candidates=1, return_logits=True)
        batch = step_batch(spans, [[0, 1], [2, 3]], num_groups=len(config.cache_groups))
        arguments = (held, cache, state, batch)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        output, cache, state = backend.compile(step, shapes, donate=(1,))(*arguments)
        tokens.append(np.asarray(output.tokens))
        logits.append(np.asarray(output.logits))
    return tokens, logits


def talking(x: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, ...]:
    """Every collective, along the last of the axes and along all."""
    some = axes[-1:]
    size = lax.axis_size(some)
    both = lax.psum((x, x * 2), axes)
    extremes = lax.pmax(x, some), lax.pmin(x.astype(jnp.bfloat16), axes).astype(x.dtype)
    ring, line = [(n, (n + 1) % size) for n in range(size)], [(n, n + 1) for n in range(size - 1)]
    sent = lax.ppermute(x, some, ring), lax.ppermute(x > 0, some, line) + x, lax.ppermute(x, some, [(0, 0)])
    stacked = lax.all_to_all(x.reshape(size, -1, 3), some, 0, 1).reshape(-1, 3)
    swapped = lax.all_to_all(x.astype(jnp.bfloat16), some, 0, 1, tiled=True).astype(x.dtype), stacked
    parts = lax.psum_scatter(x, some, scatter_dimension=0, tiled=True)
    joined = lax.all_gather(x, some, axis=1, tiled=True), lax.all_gather(x, axes, axis=1)
    return *both, *extremes, lax.psum(x, some), parts, *joined, *sent, *swapped, lax.axis_index(axes) + x


def collectives(layout: Layout, rank: int) -> dict[str, Any]:
    mesh, axes = make_mesh(layout), tuple(layout.sizes)
    along, function = PartitionSpec(axes), partial(talking, axes=axes)
    call = jax.shard_map(function, mesh=mesh, in_specs=along, out_specs=along, check_vma=False)
    x = np.random.default_rng(0).normal(size=(4 * layout.num_devices, 3)).astype(np.float32)
    mine = x[4 * rank : 4 * rank + 4]
    got = TorchBackend(ranks=Ranks(tuple(layout.sizes.items()), rank)).compile(call, (x,))(mine)
    want = [np.array_split(np.asarray(each), layout.num_devices)[rank] for each in jax.jit(call)(x)]
    error = max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(got, want, strict=True))
    return {"case": "collectives", "layout": str(layout), "error": error, "spread": float(np.std(want[0]))}


def compared(case: str, layout: Layout, rank: int) -> dict[str, Any]:
    config, weights = tiny(case)
    inner = TorchBackend(ranks=Ranks(tuple(layout.sizes.items()), rank))
    ranked = RankedBackend(inner, config, jnp.dtype(jnp.float32), layout, make_mesh(layout), rank=rank)
    (want_tokens, want), (tokens, got) = (steps(config, weights, each) for each in (ReferenceBackend(), ranked))
    same = all(np.array_equal(a, b) for a, b in zip(tokens, want_tokens, strict=True))
    error = max(float(np.abs(a - b).max()) for a, b in zip(got, want, strict=True))
    return {"case": case, "layout": str(layout), "same_tokens": same, "error": error, "spread": float(want[0].std())}


def main(rank: int, meeting: str, *cases: str) -> None:
    layouts = [parse_layout(text, num_devices=4) for text in cases[1::2]]
    distributed = importlib.import_module("torch.distributed")
    count = math.prod(layouts[0].sizes.values())
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    print(json.dumps(collectives(layouts[0], rank)), flush=True)
    for case, layout in zip(cases[::2], layouts, strict=True):
        print(json.dumps(compared(case, layout, rank)), flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *sys.argv[3:])
