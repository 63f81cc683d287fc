"""A model whose weights torch_xla spreads over four virtual devices, by a layout's table: the engine's greedy tokens.

python -m tests.backends.torch.spmd_program       in a process of its own, since SPMD is for all of one; prints JSON
"""

import importlib
import json
import os
from collections.abc import Mapping
from typing import Any

os.environ.update(PJRT_DEVICE="CPU", CPU_NUM_DEVICES="4", JAX_PLATFORMS="cpu")

import jax
import numpy as np

from distaff.backends.base import Backend
from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch.backend import TorchBackend
from distaff.models.decoder import flatten, init_weights, weight_specs
from distaff.models.families import config_from_hf
from distaff.serving import EngineConfig, Request, SamplingParams, build_engine
from distaff.sharding.parsing import parse_layout

HF: Mapping[str, Any] = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=128, hidden_size=64, intermediate_size=128,
    num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, head_dim=16, max_position_embeddings=128,
    rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True,
)  # fmt: skip
CONFIG = config_from_hf(dict(HF))


class Spread(TorchBackend):
    """torch:xla whose weights lie as the layout says; the compiler finds what is to be sent."""

    def prepare_params(self, params: Any) -> Any:
        prepared = super().prepare_params(params)
        spmd = importlib.import_module("torch_xla.distributed.spmd")
        mesh, rules = spmd.Mesh(np.arange(4), (4,), ("tensor",)), parse_layout("tensor=4", num_devices=4).rules
        specs = weight_specs(CONFIG, "float32")
        for path, leaf in flatten(prepared).items():
            axes = ["tensor" if rules[axis] else None for axis in specs[path].axes]
            if any(axes):
                # A mesh axis can split one axis of a leaf: the first that the table names.
                first = axes.index("tensor")
                spmd.mark_sharding(leaf.tensor, mesh, tuple(axes[: first + 1] + [None] * (len(axes) - first - 1)))
        return prepared


def tokens_of(backend: Backend) -> list[list[int]]:
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda leaf: leaf * 6, init_weights(CONFIG, seed=0, dtype="float32"))
    requests = [
        Request(
            tuple(rng.integers(0, 128, count).tolist()), SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        )
        for count in (9, 3)
    ]
    settings = EngineConfig(max_batch=2, max_step_tokens=16, context=32, max_decode_steps=1)
    with build_engine(CONFIG, weights, backend, settings) as engine:
        return [list(answer.token_ids) for answer in engine.generate(requests)]  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    importlib.import_module("torch_xla.runtime").use_spmd()
    backend = Spread(name="torch:xla", device="xla")
    got = tokens_of(backend)
    placed = backend.prepare_params(init_weights(CONFIG, seed=0, dtype="float32"))
    query = flatten(placed)["segments.0.layers.0.attention.q.weight"].tensor
    described = importlib.import_module("torch_xla")._XLAC._get_xla_sharding_spec(query)
    print(json.dumps({"tokens": got, "want": tokens_of(ReferenceBackend()), "query": described}))


if __name__ == "__main__":
    main()
