"""Several engines with copies of one model, each on devices of its own, behind one door."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from ..backends.errors import DistaffError
from .engine import Engine
from .engine_config import EngineConfig
from .generation import Generation, Outlet, Result
from .metrics import Metrics
from .types import Request

REMEMBERED = 4096
"""Beginnings of prompts whose engine is known."""
BEGINNING = 64
"""Tokens of a prompt that count as its beginning."""
_IDLE_SECONDS = 0.001


class Replicas:
    """Requests go where prompts that begin alike went, unless that engine has a batch more to do than another.

    It is used as an Engine is. A round is a round of every engine: each dispatches its step before the next one is
    asked, so their devices work at the same time.

    Args:
        engines: at least one; they count in the same `metrics`.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = tuple(engines)
        self._homes: OrderedDict[tuple[object, ...], Engine] = OrderedDict()
        self._started = False

    @property
    def config(self) -> EngineConfig:
        """Of each engine."""
        return self.engines[0].config

    @property
    def metrics(self) -> Metrics:
        return self.engines[0].metrics

    @property
    def load_seconds(self) -> float:
        return self.engines[0].load_seconds

    @load_seconds.setter
    def load_seconds(self, seconds: float) -> None:
        self.engines[0].load_seconds = seconds

    def submit(self, request: Request) -> Generation:
        """As Engine.submit."""
        return self._engine_for(request).submit(request)

    def submit_to(self, outbox: Outlet, request: Request) -> Callable[[], None]:
        """As Engine.submit_to."""
        return self._engine_for(request).submit_to(outbox, request)

    def after_round(self, call: Callable[[], None]) -> None:
        """As Engine.after_round, for the rounds of each."""
        for engine in self.engines:
            engine.after_round(call)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """As Engine.generate."""
        generations: list[Generation] = []
        try:
            generations += (self.submit(request) for request in requests)
            self.flush()
            if not self._started:
                self.run()
            return [generation.result() for generation in generations]
        finally:
            for generation in generations:
                generation.close()

    def flush(self) -> None:
        """Says that the input ends here."""
        for engine in self.engines:
            engine.flush()

    def step(self) -> bool:
        """One round of every engine; whether any had something to do."""
        worked = [engine.step() for engine in self.engines]  # all of them, whatever the first one says
        return any(worked)

    def run(self) -> None:
        """Rounds until no request is left."""
        while self.num_requests:
            if not self.step():
                time.sleep(_IDLE_SECONDS)

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return sum(engine.num_requests for engine in self.engines)

    def warm_up(self, *, background: bool = False) -> None:
        """As Engine.warm_up."""
        for engine in self.engines:
            engine.warm_up(background=background)

    @property
    def is_warm(self) -> bool:
        """Whether everything is compiled."""
        return all(engine.is_warm for engine in self.engines)

    @property
    def max_batch(self) -> int:
        """As Engine.max_batch, of all together."""
        return sum(engine.max_batch for engine in self.engines)

    @property
    def pages(self) -> tuple[int, int]:
        """As Engine.pages, of all together."""
        pages = [engine.pages for engine in self.engines]
        return sum(used for used, _ in pages), sum(total for _, total in pages)

    def forget_prefixes(self) -> int:
        """As Engine.forget_prefixes."""
        return sum(engine.forget_prefixes() for engine in self.engines)

    @property
    def is_ready(self) -> bool:
        """As Engine.is_ready, of all."""
        return all(engine.is_ready for engine in self.engines)

    @property
    def dead(self) -> DistaffError | None:
        """Why one of them does nothing any more, if so."""
        return next((engine.dead for engine in self.engines if engine.dead is not None), None)

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: the books of an engine do not agree.
        """
        for engine in self.engines:
            engine.check_integrity()

    def start(self) -> None:
        """Lets threads do the rounds, until `close`."""
        self._started = True
        for engine in self.engines:
            engine.start()

    def close(self) -> None:
        """Ends every request and every engine."""
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> "Replicas":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _engine_for(self, request: Request) -> Engine:
        key = (request.cache_salt, *request.prompt[:BEGINNING])
        loads = {engine: engine.num_requests for engine in self.engines}
        home = self._homes.get(key)
        if home is None or loads[home] - min(loads.values()) > self.config.max_batch:
            home = min(self.engines, key=lambda engine: loads[engine])
        self._remember(key, home)
        return home

    def _remember(self, key: tuple[object, ...], engine: Engine) -> None:
        """The engine that texts with this beginning went to last."""
        self._homes[key] = engine
        self._homes.move_to_end(key)
        if len(self._homes) > REMEMBERED:
            self._homes.popitem(last=False)
