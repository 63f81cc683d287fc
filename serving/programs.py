"""A model's compiled programs, and the arrays that they keep on the device."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..backends.base import Backend, Program, PyTree
from ..models.config import ModelConfig
from ..models.decoder import Weights
from ..models.kv_cache import KVCache, allocate_cache, copy_pages
from ..models.row_state import RowState, SamplingRows, admit
from ..models.step import Step, StepBatch, StepOutput
from .plan import Bucket

MAX_ADMITTED = 8
"""Rows that one call uploads."""
MAX_COPIED = 8
"""Pages of a group that one call copies."""


class Programs:
    """Runs steps on one device (or one layout of devices).

    Args:
        config, weights, backend: the model; weights in the checkpoint's form, consumed.
        kv_dtype: of the cache.
        num_slots: R, rows that can run at once.
        max_len: longest text in tokens.
        page_size, num_pages: of the cache; a number for each cache group.
        buckets: what to compile for, smallest first.
        max_steps: most decode steps in one call.
        replicas: copies of the model, each with slots, pages and rows of its own, behind each other in every array.
        expert_load: whether steps count the load of experts.
        on_compile: called before each compilation with whether that is unexpected, since `warm_up` has ended.

    A program is compiled when it is first used, unless `warm_up` did that before.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        backend: Backend,
        kv_dtype: DTypeLike,
        *,
        num_slots: int,
        max_len: int,
        page_size: int,
        num_pages: tuple[int, ...],
        buckets: Sequence[Bucket],
        max_steps: int,
        replicas: int = 1,
        expert_load: bool = False,
        on_compile: Callable[[bool], None] = lambda unexpected: None,
    ) -> None:
        self.groups = config.cache_groups
        self.num_slots, self.max_len = num_slots, max_len
        self.page_size, self.num_pages = page_size, num_pages
        self.max_steps = max_steps
        self.replicas = replicas
        self._expert_load = expert_load
        self._config = config
        self._backend = backend
        self._kv_dtype = kv_dtype
        self._weights = backend.prepare_params(weights)
        self._planned = tuple(buckets)
        self._programs: dict[Bucket | str, Program] = {}
        self._only_ready = self._warm = self._closed = self._rehearsing = False
        self._compiling = threading.RLock()
        self._on_compile = on_compile
        self.compile_seconds = 0.0
        self._cache: KVCache | None = None
        self._state: RowState | None = None
        self.reset()

    @property
    def is_warm(self) -> bool:
        """Whether everything is compiled."""
        return self._warm

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Those that may be used now: all, or during a warm-up those that are compiled."""
        if self._rehearsing:
            return ()
        if not self._only_ready:
            return self._planned
        return tuple(bucket for bucket in self._planned if bucket in self._programs)

    def warm_up(self) -> None:
        """Compiles everything; other threads may use what is ready meanwhile.

        The smallest bucket that reads prompts comes first: it can serve, since rows that only draw fit into it too.
        Where a device compiles or records in a program's first calls, nothing is ready before all have been made: they
        go through the cache that everybody uses. The smallest come first there, since memory may run out.
        """
        rehearsals = self._backend.capabilities.rehearsals
        self._only_ready, self._rehearsing = True, rehearsals > 0
        first = [bucket for bucket in self._planned if bucket.kind == "mixed"][:1]
        names = dict.fromkeys(("admit", "copy", *first, *self._planned))
        if rehearsals:
            names = ("admit", "copy", *sorted(self._planned, key=lambda bucket: bucket.num_tokens))
        for name in names:
            if self._closed:
                return
            self._program(name)
            for _ in range(rehearsals):
                self._rehearse(name)
        self._only_ready, self._rehearsing, self._warm = False, False, True

    def _rehearse(self, name: Bucket | str) -> None:
        """A call that leaves nothing behind: no row is admitted, no page copied, and a step reads a token of slot 0
        into page 0, where nothing stands yet; decode does so twice, since a further turn may be another program."""
        if name == "admit":
            none = np.full(MAX_ADMITTED, self.num_slots, np.int32)
            few = RowState.empty(MAX_ADMITTED, self.max_len, self._config.vocab_size)
            self._state = self._program(name)(self._state, none, few)
            return
        if name == "copy":
            sources = tuple(np.zeros(MAX_COPIED, np.int32) for _ in self.groups)
            nowhere = tuple(np.full(MAX_COPIED, pages, np.int32) for pages in self.num_pages)
            self._cache = self._program(name)(self._cache, sources, nowhere)
            return
        assert isinstance(name, Bucket)
        slots, kv_lens = np.full(name.num_rows, self.num_slots, np.int32), np.zeros(name.num_rows, np.int32)
        starts = np.ones(name.num_rows + 1, np.int32)
        slots[0], kv_lens[0], starts[0] = 0, 1, 0
        pages = np.zeros((name.num_rows, -(-self.max_len // self.page_size)), np.int32)
        draws = np.zeros(name.num_rows, np.bool_)
        num_steps = np.asarray(min(2, self.max_steps) if name.kind == "decode" else 1, np.int32)
        arrays: Any = (slots, starts, kv_lens, (pages,) * len(self.groups), draws, num_steps)
        self.step(name, StepBatch(*arrays))

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None:
        """Uploads the text and the sampling parameters of rows that begin to run."""
        for first in range(0, len(slots), MAX_ADMITTED):
            part = slice(first, first + MAX_ADMITTED)
            where = np.full(MAX_ADMITTED, self.num_slots, np.int32)
            where[: len(slots[part])] = slots[part]
            texts = np.zeros((MAX_ADMITTED, self.max_len), np.int32)
            for text, history in zip(texts, histories[part], strict=False):
                text[: len(history)] = history
            padded = rows[part] + [rows[first]] * (MAX_ADMITTED - len(rows[part]))
            stacked = SamplingRows.stack(padded)
            new: Any = (texts, stacked)
            self._state = self._program("admit")(self._state, where, RowState(*new))

    def copy_pages(self, copies: tuple[list[tuple[int, int]], ...]) -> None:
        """Copies pages (source, target) of each group."""
        for first in range(0, max(map(len, copies)), MAX_COPIED):
            sources, targets = [], []
            for pairs, num_pages in zip(copies, self.num_pages, strict=True):
                source, target = np.zeros(MAX_COPIED, np.int32), np.full(MAX_COPIED, num_pages, np.int32)
                for i, (old, new) in enumerate(pairs[first : first + MAX_COPIED]):
                    source[i], target[i] = old, new
                sources.append(source)
                targets.append(target)
            self._cache = self._program("copy")(self._cache, tuple(sources), tuple(targets))

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        """Dispatches a step; its output is on the device and may not be there yet."""
        program = self._program(bucket)
        output, self._cache, self._state = program(self._weights, self._cache, self._state, batch)
        return output

    def reset(self) -> None:
        """A new, empty cache and row state."""
        self._cache = self._state = None
        self._cache = self._new_cache()
        self._state = self._new_state()

    def close(self) -> None:
        """Lets go of weights, cache and programs."""
        self._closed = True
        with self._compiling:  # a warm-up in another thread ends with the program it is at
            self._cache = self._state = self._weights = None
            self._programs.clear()

    def _program(self, name: Bucket | str) -> Program:
        program = self._programs.get(name)
        if program is not None:
            return program
        with self._compiling:
            if name not in self._programs:
                self._on_compile(self._warm)
                start = time.perf_counter()
                self._programs[name] = self._compile(name)
                self.compile_seconds += time.perf_counter() - start
            return self._programs[name]

    def _compile(self, name: Bucket | str) -> Program:
        cache, state = jax.eval_shape(self._new_cache), jax.eval_shape(self._new_state)
        times = self.replicas
        if name == "admit":
            few = jax.eval_shape(lambda: RowState.empty(times * MAX_ADMITTED, self.max_len, self._config.vocab_size))
            return self._backend.compile(admit, (state, _integers(times * MAX_ADMITTED), few), donate=(0,))
        if name == "copy":
            ids = (_integers(times * MAX_COPIED),) * len(self.groups)
            return self._backend.compile(copy_pages, (cache, ids, ids), donate=(0,))
        assert isinstance(name, Bucket)
        step = Step(
            self._config,
            self._backend,
            num_tokens=name.num_tokens,
            max_steps=self.max_steps if name.kind == "decode" else 1,
            prompt=name.kind == "prompt",
            decode=name.kind == "decode",
            expert_load=self._expert_load,
        )
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._weights)
        num_rows = times * name.num_rows
        tables = (_integers(num_rows, -(-self.max_len // self.page_size)),) * len(self.groups)
        rows = _integers(num_rows)
        draws: Any = jax.ShapeDtypeStruct((num_rows,), jnp.bool_)
        num_steps = _integers(times) if times > 1 else _integers()
        batch = StepBatch(rows, _integers(num_rows + times), rows, tables, draws, num_steps)
        return self._backend.compile(step, (weights, cache, state, batch), donate=(1, 2))

    def _new_cache(self) -> KVCache:
        return allocate_cache(
            self._config, self._backend, num_pages=self.num_pages, page_size=self.page_size, dtype=self._kv_dtype
        )

    def _new_state(self) -> RowState:
        return RowState.empty(self.replicas * self.num_slots, self.max_len, self._config.vocab_size)


def _integers(*shape: int) -> PyTree:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
