"""A Front over the fake model, with a small real tokenizer: what tests of every protocol stand on.

    async with serving() as served:
        stream = await served.front.open(Call("abc"))

Each token of the model is one printable ASCII character, so texts can be compared with `answer`. `served.programs` can
be made to fail or to wait; `served.check_empty()` counts pages and slots.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from distaff.models.step import StepBatch, StepOutput
from distaff.models.tokenizer import Tokenizer
from distaff.serving.engine import Engine
from distaff.serving.engine_config import EngineConfig
from distaff.serving.front import Front, FrontLimits, ModelCard
from distaff.serving.plan import Bucket

from ..fakes import FakePrograms, continuation

PRINTABLE = [chr(code) for code in range(32, 127)] + ["\n"]
SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
VOCAB = len(PRINTABLE) + len(SPECIAL)  # 101: the fake model draws all of them
EOS = VOCAB - 4
PAGE, MAX_LEN = 4, 128
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def small_tokenizer(*, chat: bool = True) -> Tokenizer:
    """Bytes as tokens: printable ASCII and newline below the special tokens, all other bytes above them."""
    byte_of = {character: index for index, character in enumerate(PRINTABLE)}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = [_spell(character) for character in PRINTABLE]
    rest = sorted(set(alphabet) - set(spelled))
    tokens = [*spelled, *SPECIAL, *rest]
    assert len(byte_of) == len(PRINTABLE)
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.add_special_tokens(list(SPECIAL))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(
        backend,
        source="/somewhere/private/tokenizer.json",
        special={"bos_token": "<s>", "eos_token": "</s>"},
        templates={"default": TEMPLATE} if chat else None,
    )


def _spell(character: str) -> str:
    """A byte as ByteLevel writes it."""
    return {" ": "Ġ", "\n": "Ċ"}.get(character, character)


class SlowPrograms(FakePrograms):
    """Steps that take `step_seconds`, wait for `gate`, or raise `failure`, `num_failures` times.

    Attributes:
        num_admitted: sequences that were given a slot.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.step_seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.num_failures = 10**9
        self.num_admitted = 0
        super().__init__(*args, **kwargs)

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, Any]]) -> None:
        self.num_admitted += len(slots)
        super().admit(slots, histories, rows)

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        self.gate.wait()
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if self.failure is not None and self.num_failures > 0:
            self.num_failures -= 1
            raise self.failure
        return super().step(bucket, batch)


class QuickPrograms(SlowPrograms):
    """Draws one letter for ever and checks nothing: what is left of the time is the server's own."""

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, Any]]) -> None:
        self.num_admitted += len(slots)

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        if self.step_seconds:
            time.sleep(self.step_seconds)
        tokens = np.full((bucket.num_rows, int(batch.num_steps)), 65)
        return StepOutput(tokens, np.ones(bucket.num_rows, np.int32), None, None, None)  # pyright: ignore[reportArgumentType]


class Served:
    """A front, its engine and its device."""

    def __init__(self, front: Front, engine: Engine, programs: SlowPrograms, tokenizer: Tokenizer) -> None:
        self.front, self.engine, self.programs, self.tokenizer = front, engine, programs, tokenizer

    def answer(self, prompt: str | Sequence[int], tokens: int = 8, seed: int = 0) -> list[int]:
        """The token ids that the model must give, end tokens ignored."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return continuation(ids, len(ids) + tokens, seed, windows=(None,), vocab_size=VOCAB)[len(ids) :]

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    @property
    def used_pages(self) -> int:
        """Pages in use, without those that the prefix cache could give back."""
        tables = self.engine.scheduler.tables
        return sum(tables.num_pages) - sum(tables.cache.available(g) for g in range(len(tables.num_pages)))

    @property
    def used_slots(self) -> int:
        return self.engine.scheduler.num_running

    async def settle(self, seconds: float = 5.0) -> None:
        """Waits until the engine has nothing to do."""
        end = time.monotonic() + seconds
        while self.engine.num_requests or self.used_slots or self.used_pages or self.front.streams():
            assert time.monotonic() < end, (
                f"{self.engine.num_requests} requests, {self.used_slots} slots, {self.used_pages} pages, "
                f"{len(self.front.streams())} streams are still held"
            )
            await asyncio.sleep(0.005)

    async def check_empty(self) -> None:
        """Every page and slot is free, and the books agree."""
        await self.settle()
        self.engine.check_integrity()
        assert self.front.load().streams == self.front.load().tokens_in_flight == 0


def make_engine(
    *,
    pages: int = 256,
    slots: int = 8,
    max_len: int = MAX_LEN,
    eos: bool = False,
    programs: type[SlowPrograms] = SlowPrograms,
    tokenizer: Tokenizer,
    **config: Any,
) -> tuple[Engine, SlowPrograms]:
    """An engine over the fake model, which draws end tokens like any other unless `eos` makes them count."""
    buckets = (
        Bucket(1, 1, "decode"), Bucket(slots, slots, "decode"), Bucket(16, slots, "mixed"),
        Bucket(64, slots, "mixed"), Bucket(32, slots, "prompt"),
    )  # fmt: skip
    device = programs(
        buckets,
        num_slots=slots,
        max_len=max_len,
        page_size=PAGE,
        num_pages=(pages,),
        windows=(None,),
        vocab_size=VOCAB,
    )
    settings = EngineConfig(**{"max_batch": slots, "max_step_tokens": 64, "max_decode_steps": 1, **config})
    engine = Engine(
        device,
        settings,
        vocab_size=tokenizer.vocab_size,
        eos_ids=frozenset([EOS]) if eos else frozenset(),
        tokenizer=tokenizer,
    )
    return engine, device


@asynccontextmanager
async def serving(
    *,
    limits: FrontLimits | None = None,
    served_names: Sequence[str] = (),
    with_text: bool = True,
    eos: bool = False,
    start: bool = True,
    **engine: Any,
) -> AsyncIterator[Served]:
    """A front that takes calls, or is not started yet; at the end everything is closed."""
    served = make_served(limits=limits, served_names=served_names, with_text=with_text, eos=eos, **engine)
    try:
        if start:
            async with served.front:
                yield served
        else:
            yield served
    finally:
        served.programs.gate.set()


def make_served(
    *,
    limits: FrontLimits | None = None,
    served_names: Sequence[str] = (),
    with_text: bool = True,
    eos: bool = False,
    **engine: Any,
) -> Served:
    """The same before anything was started."""
    tokenizer = small_tokenizer()
    made, programs = make_engine(tokenizer=tokenizer, eos=eos, **engine)
    card = ModelCard(
        name="fake",
        family="fake",
        vocab_size=tokenizer.vocab_size,
        context=programs.max_len,
        backend="fake",
        max_batch=programs.num_slots,
        has_tokenizer=with_text,
        has_chat_template=with_text,
        bos_id=tokenizer.bos_id,
        eos_ids=frozenset([EOS]) if eos else frozenset(),
    )
    limits = limits or FrontLimits(max_buffered_events=1000)  # a message for each token, however slow this machine is
    front = Front(made, tokenizer=tokenizer if with_text else None, card=card, limits=limits, served_names=served_names)
    return Served(front, made, programs, tokenizer)
