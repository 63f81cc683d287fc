"""The engine under a layout gives the tokens of one device: paged cache, continuous batching, shared prefixes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.select import select_backend
from distaff.models.checkpoints.hf_folder import HFFolder
from distaff.models.config import MoeConfig
from distaff.models.decoder import Weights
from distaff.serving.build import build_engine, build_one_program
from distaff.serving.cache_size import page_bytes
from distaff.serving.engine_config import EngineConfig
from distaff.serving.llm import LLM
from distaff.serving.replicas import Replicas
from distaff.serving.results import Completion
from distaff.serving.types import Request, SamplingParams
from distaff.sharding.errors import IndivisibleError
from distaff.sharding.parsing import layout_yaml, parse_layout
from distaff.sharding.shard import shard_backends

from .quick import QuickReference
from .tiny import tiny

SETTINGS = EngineConfig(max_batch=3, context=64, max_step_tokens=16, max_decode_steps=4)
LONG = replace(SETTINGS, context=96)


def answers(case: str, backends: Sequence[Backend]) -> list[tuple[int, ...]]:
    """Of engines on these backends."""
    config, weights = tiny(case)
    return served(case, Replicas([build_engine(config, weights, backend, SETTINGS) for backend in backends]))


def served(case: str, replicas: Replicas, tokens: int = 8) -> list[tuple[int, ...]]:
    """Six requests on three rows, in chunks of 16 tokens; most begin alike."""
    ids = np.random.default_rng(2).integers(0, tiny(case)[0].vocab_size, 60).tolist()
    prompts = [ids[:20], ids[:33], ids[40:43], ids[:25], ids[:33], ids[7:24]]
    with replicas as engines:
        requests = [Request(tuple(prompt), SamplingParams(max_tokens=tokens, temperature=0)) for prompt in prompts]
        results = engines.generate(requests)
        engines.check_integrity()
        assert all(engine.metrics.prefill.calls > 0 for engine in engines.engines)
    return [tuple(result.token_ids) for result in results if isinstance(result, Completion)]


def under(case: str, text: str, inner: Backend) -> list[tuple[int, ...]]:
    return answers(case, shard_backends(inner, tiny(case)[0], text, jnp.dtype(jnp.float32)))


@lru_cache
def on_one_device(case: str) -> list[tuple[int, ...]]:
    return answers(case, [QuickReference()])


@lru_cache
def long_on_one_device(case: str) -> list[tuple[int, ...]]:
    config, weights = tiny(case)
    return served(case, Replicas([build_engine(config, weights, QuickReference(), LONG)]), tokens=48)


EVERY = (
    *("tensor=2", "tensor=4", "tensor-scatter:tensor=2", "attention-ff:tensor=2,tensor2=2"),
    *("sequence=4", "sequence=2,tensor=2", "stage=2,tensor=2", "data=2,tensor=2", "replica:data=3"),
    *("tensor-2d:tensor=2,tensor2=2", "sequence-alltoall:sequence=2,tensor=2", "weight-gathered:tensor=4"),
)
IN_CI = {("llama31", "tensor=4"), ("llama31", "sequence=2,tensor=2")}
MIXTURES = ("expert=4", "expert:expert=2,tensor=2", "sequence=2,expert=2,tensor=2", "stage=2,expert=2")
PRODUCTS = ("stage=2,sequence=2", "pipeline+tensor-2d:stage=2,tensor=2,tensor2=2")


def pairs() -> list[Any]:
    """Every preset with every family that it can hold: a few in CI, all in the soak."""
    dense = [(case, text) for case in ("llama31", "gemma3", "olmo2") for text in EVERY]
    dense += [("llama31", text) for text in PRODUCTS]
    mixed = [(case, text) for case in ("qwen3_moe", "gpt_oss") for text in (*EVERY, *MIXTURES)]
    return [
        pytest.param(*pair, marks=pytest.mark.slow if pair in IN_CI else pytest.mark.soak) for pair in (*dense, *mixed)
    ]


@pytest.mark.parametrize(("case", "text"), pairs())
def test_greedy_tokens_are_those_of_one_device(case: str, text: str) -> None:
    got = under(case, text, QuickReference())
    assert len(set(got)) > 3 and got == on_one_device(case)


@pytest.mark.parametrize(
    ("case", "text", "pages"),
    [
        pytest.param("llama31", "data=2,tensor=2", 8, marks=pytest.mark.slow),
        pytest.param("llama31", "attention-data:data=2,tensor=2", 8, marks=pytest.mark.slow),
        *(
            pytest.param(case, text, pages, marks=pytest.mark.soak)
            for case, text, pages in [
                ("gemma3", "replica:data=3", None),
                ("qwen3_moe", "expert:data=2,expert=2,tensor=2", None),
                ("gpt_oss", "tensor-2d:data=2,tensor=2,tensor2=2", 7),
                ("olmo2", "data=4,tensor=2", None),
                ("llama31", "sequence:data=2,sequence=2,tensor=2", 8),
                ("qwen3_moe", "attention-data:data=4,tensor=2", None),
                ("gpt_oss", "attention-data:data=2,tensor=2", None),
                ("gemma3", "attention-data:data=2,tensor=2", None),
                ("llama31", "data=2,stage=2,tensor=2", 8),
                ("gemma3", "data=2,stage=2", None),
            ]
        ),
    ],
)
def test_replicas_in_one_program_give_the_tokens_of_one_device(case: str, text: str, pages: int | None) -> None:
    """With the prefix cache on; with few pages rows give way to each other and are computed anew."""
    config, weights = tiny(case)
    backend = shard_backends(QuickReference(), config, text, jnp.dtype(jnp.float32), one_program=True)[0]
    memory = None
    if pages is not None:
        size = backend.page_size
        memory = pages * sum(
            page_bytes(group, backend, page_size=size, dtype=jnp.dtype(jnp.float32)) for group in config.cache_groups
        )
    program = build_one_program(config, weights, backend, replace(LONG, kv_memory=memory))
    got = served(case, program, tokens=48)
    assert len(set(got)) > 3 and got == long_on_one_device(case)
    assert program.metrics.preemptions > 0 or case != "llama31"
    assert program.metrics.prefix_hit_tokens > 0


@pytest.mark.soak
@pytest.mark.parametrize("text", ["expert=4", "expert:data=2,expert=2,tensor=2"])
def test_the_load_of_experts_is_that_of_one_device(text: str, tmp_path: Path) -> None:
    """With small buffers, so that tokens have to wait for further rounds."""
    settings = replace(SETTINGS, expert_load=True)
    found: list[dict[str, Any]] = []
    small = tmp_path / "small.yaml"
    small.write_text(layout_yaml(parse_layout(text, num_devices=8)).replace("capacity: 1.25", "capacity: 0.3"))
    for layout in (None, str(small)):
        config, weights = tiny("qwen3_moe")
        backend: Backend = QuickReference()
        if layout is not None:
            backend = shard_backends(backend, config, layout, jnp.dtype(jnp.float32), one_program=True)[0]
        several = layout is not None and "data" in text
        engine = build_one_program(config, weights, backend, settings) if several else build_engine(
            config, weights, backend, settings
        )  # fmt: skip
        metrics = engine.metrics
        got = served("qwen3_moe", engine if isinstance(engine, Replicas) else Replicas([engine]))
        assert got == on_one_device("qwen3_moe")
        assert metrics.experts is not None
        found.append(metrics.experts.snapshot())
        tokens = metrics.prefill.tokens + metrics.decode.tokens
        mixture = config.layers[0].mlp
        assert isinstance(mixture, MoeConfig)
        assert found[-1]["chosen"] == tokens * mixture.top_k * config.num_layers
    if "data" not in text:  # replicas share less of the prompts
        assert found[0]["layers"] == found[1]["layers"]
    assert found[0]["waited"] == 0 < found[1]["waited"]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["tensor=4", "sequence=2,tensor=2"])
def test_a_chips_own_form_of_weights_and_cache_is_kept_on_each_device(text: str) -> None:
    """But for caches that devices share, if the chip's kernels read pages whole."""
    assert under("llama31", text, select_backend("cpu")) == on_one_device("llama31")


@pytest.mark.slow
def test_a_model_by_name_runs_under_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is read once, however many replicas there are; each of two gets one of the prompts."""
    golden = Path(__file__).parent.parent / "golden" / "smollm2"
    params = SamplingParams(max_tokens=8, temperature=0)
    requests = [Request(tuple(prompt), params) for prompt in (range(1, 30), range(30, 50))]
    tokens, loads, load = [], [], HFFolder.load_weights

    def counted(self: HFFolder, *args: Any, **kwargs: Any) -> Weights:
        loads.append(self)
        return load(self, *args, **kwargs)

    monkeypatch.setattr(HFFolder, "load_weights", counted)
    for layout in (None, "tensor=3", "data=2,tensor=3"):
        llm = LLM(golden, backend="reference", layout=layout, context=64, max_batch=2, max_step_tokens=16)
        results = llm.engine.generate(requests)
        tokens.append([result.token_ids for result in results if isinstance(result, Completion)])
        llm.close()
    assert tokens[0] == tokens[1] == tokens[2] and len(tokens[0]) == 2 and len(loads) == 3
    with pytest.raises(IndivisibleError, match="9 heads"):
        LLM(golden, backend="reference", layout="tensor=2")
    assert len(loads) == 3  # refused before anything is read
