"""Replicas that step together: every request gets its own tokens, and goes where there is room or its prefix."""

from collections.abc import Sequence as Row
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.models.step import StepBatch, StepOutput
from distaff.serving import Completion, DeviceError, Engine, EngineClosedError, EngineConfig, Kind, Request, Score
from distaff.serving.metrics import Metrics
from distaff.serving.one_program import OneProgram
from distaff.serving.plan import Bucket
from distaff.serving.replica_device import Admitted, Copies
from distaff.serving.types import SamplingParams

from ..fakes import FakePrograms, continuation, prompt_logprob
from .test_engine import BUCKETS, MAX_LEN, PAGE, SLOTS, VOCAB


class FakeReplicas(FakePrograms):
    """A fake model for each replica; outputs stand behind each other."""

    def __init__(self, replicas: int, pages: int = 64, windows: Row[int | None] = (None,)) -> None:
        self.replicas, self.steps, self.breaks, self.resets = replicas, list[Bucket](), set[int](), 0
        sizes: dict[str, Any] = dict(
            num_slots=SLOTS, max_len=MAX_LEN, page_size=PAGE, num_pages=(pages,) * len(windows), windows=windows
        )
        self.each = [FakePrograms(BUCKETS, **sizes, vocab_size=VOCAB) for _ in range(replicas)]
        super().__init__(BUCKETS, **sizes, vocab_size=VOCAB)

    def reset(self) -> None:
        self.resets += 1
        for one in self.each:
            one.reset()

    def admit_all(self, admitted: Row[Admitted]) -> None:
        for one, new in zip(self.each, admitted, strict=True):
            one.admit(*new)

    def copy_all(self, copies: Row[Copies]) -> None:
        for one, pairs in zip(self.each, copies, strict=True):
            one.copy_pages(pairs)

    def step_all(self, bucket: Bucket, batches: Row[StepBatch]) -> StepOutput:
        self.steps.append(bucket)
        if len(self.steps) in self.breaks:
            raise RuntimeError("the chips are on fire")
        outputs = [one.step(bucket, batch) for one, batch in zip(self.each, batches, strict=True)]
        widest = max(output.tokens.shape[1] for output in outputs)

        def joined(*leaves: np.ndarray) -> np.ndarray:
            if leaves[0].ndim > 1 and bucket.kind == "decode":
                leaves = tuple(
                    np.pad(leaf, [(0, 0), (0, widest - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)], constant_values=-1)
                    for leaf in leaves
                )
            return np.concatenate(leaves)

        return jax.tree.map(joined, *outputs)


def make(replicas: int = 2, pages: int = 64, windows: Row[int | None] = (None,), **config: Any) -> OneProgram:
    settings = EngineConfig(**{"max_batch": SLOTS, "max_step_tokens": 32, **config})
    metrics = Metrics(max_batch=replicas * SLOTS, num_pages=replicas * pages * len(windows))
    return OneProgram(
        FakeReplicas(replicas, pages, windows),
        lambda device: Engine(device, settings, vocab_size=VOCAB, metrics=metrics),
    )


def request(*prompt: int, tokens: int = 4, **fields: Any) -> Request:
    return Request(prompt, SamplingParams(max_tokens=tokens, temperature=0, seed=0), **fields)


def device(program: OneProgram) -> FakeReplicas:
    assert isinstance(program._device, FakeReplicas)
    return program._device


def loads(program: OneProgram) -> list[int]:
    return [engine.num_requests for engine in program.engines]


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2)), min_size=1, max_size=24),
    st.sampled_from([(1, 64), (2, 20), (3, 16)]),
    st.sampled_from([(None,), (None, 9)]),
)
def test_every_request_gets_its_own_tokens(
    sizes: list[tuple[int, int, int]], shape: tuple[int, int], windows: tuple[int | None, ...]
) -> None:
    """Prompts of three families share beginnings; few pages make sequences give way."""
    prompts = [tuple((7 * family + i) % VOCAB for i in range(length)) for length, _, family in sizes]
    with make(*shape, windows) as program:
        results = program.generate(
            request(*prompt, tokens=tokens) for prompt, (_, tokens, _) in zip(prompts, sizes, strict=True)
        )
        program.check_integrity()
        assert program.num_requests == 0
    for prompt, (_, tokens, _), result in zip(prompts, sizes, results, strict=True):
        assert isinstance(result, Completion)
        expected = continuation(prompt, len(prompt) + tokens, seed=0, windows=windows, vocab_size=VOCAB)
        assert [*prompt, *result.token_ids] == expected


def test_prompts_are_scored_beside_others() -> None:
    scored = [Request(tuple(range(first, first + 9)), kind=Kind.SCORE) for first in (3, 50)]
    others = [request(*range(first, first + 30), tokens=8) for first in range(6)]
    with make() as program:
        results = program.generate([*scored, *others])
        for first, result in zip((3, 50), results, strict=False):
            assert isinstance(result, Score)
            assert result.logprobs.logprobs.tolist() == [prompt_logprob(first + i) for i in range(1, 9)]
        for first, result in enumerate(results[2:]):
            assert isinstance(result, Completion)
            text = [*range(first, first + 30), *result.token_ids]
            assert text == continuation(range(first, first + 30), 38, seed=0, windows=(None,), vocab_size=VOCAB)
        assert {"decode", "prompt"} <= {bucket.kind for bucket in device(program).steps}


def test_a_step_is_one_call_and_work_is_spread() -> None:
    with make(max_decode_steps=4) as program:
        waiting = [program.submit(request(*range(first, first + 5), tokens=9)) for first in range(0, 40, 10)]
        program.step()
        assert loads(program) == [2, 2] and len(device(program).steps) == 1
        program.run()
        assert len(device(program).steps) == 1 + 2  # nine tokens: one, then four and four
        assert all(len(each.completion().token_ids) == 9 for each in waiting)
        assert program.metrics.preemptions == 0


def test_a_request_goes_where_its_prefix_is_unless_there_is_more_to_do() -> None:
    prompt = range(1, 21)  # five pages
    with make() as program:
        program.submit(request(*prompt)).completion()
        home = next(i for i, engine in enumerate(program.engines) if engine.scheduler.prefix_stats.queries)
        several = [program.submit(request(*prompt, tokens=30)) for _ in range(8)]
        program.step()
        counts = loads(program)
        # Until it has more to do by as many requests as pages are cached; then the other one has them too.
        assert counts[home] == 5 and counts[1 - home] == 3
        assert program.metrics.waiting + program.metrics.running == 8
        for each in several:
            each.close()
    with make() as program:  # nothing is cached yet, but the first will be
        together = [program.submit(request(*prompt)) for _ in range(4)]
        program.step()
        assert sorted(loads(program)) == [0, 4]
        assert all(len(each.completion().token_ids) == 4 for each in together)


def test_what_finds_no_room_waits_in_front_and_can_be_given_up() -> None:
    with make(max_batch=2, prefix_cache=False) as program:
        waiting = [program.submit(request(first, 2, 3, tokens=20)) for first in range(20)]
        urgent = program.submit(request(99, 2, 3, tokens=20, priority=-1))
        program.step()
        assert sum(loads(program)) < 21 == program.num_requests
        assert len(program._queue) == 21 - sum(loads(program))
        for each in (waiting[0], waiting[-1], urgent):
            each.close()
        program.step()
        assert program.num_requests == 18
        program.run()
        assert all(len(each.completion().token_ids) == 20 for each in waiting[1:-1])


@pytest.mark.parametrize("step", [1, 3])
def test_a_failed_step_fails_what_ran_and_nobody_reads_a_lost_cache(step: int) -> None:
    with make(max_batch=2, max_decode_steps=1) as program:
        device(program).breaks = {step}
        first = [program.submit(request(*range(20), tokens=5)), program.submit(request(7, 8, tokens=5))]
        while program.num_requests:
            program.step()
        for each in first:
            with pytest.raises(DeviceError, match="chips are on fire"):
                each.completion()
        assert device(program).resets == 2
        again = program.submit(request(*range(20), tokens=5)).completion()
        assert [*range(20), *again.token_ids] == continuation(range(20), 25, seed=0, windows=(None,), vocab_size=VOCAB)
        program.check_integrity()


def test_replicas_that_fail_again_and_again_are_given_up() -> None:
    program = make()
    device(program).breaks = set(range(1, 100))
    for _ in range(3):
        with pytest.raises(DeviceError):
            program.submit(request(1, 2, 3)).completion()
    with pytest.raises(DeviceError, match="lost its device"):
        program.submit(request(1, 2, 3))
    program.close()


def test_threads_do_the_rounds_once_they_are_started() -> None:
    program = make(3)
    program.start()
    results = program.generate(request(first, 2, 3) for first in range(30))
    assert all(isinstance(result, Completion) and len(result.token_ids) == 4 for result in results)
    left = program.submit(request(1, 2, 3, tokens=50))
    program.close()
    with pytest.raises(EngineClosedError):
        left.completion()
    with pytest.raises(EngineClosedError):
        program.submit(request(1, 2, 3))
