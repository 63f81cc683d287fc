"""A job spread over actors of Ray: its parts go to whoever is free, and to another one when an actor dies."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...backends.errors import DistaffError, UnsupportedError
from .errors import JobStoppedError
from .ray_worker import RayPlan, RayWorker

MAX_DEATHS = 20
"""Times that actors may die with the same part before the job fails."""
_TICK = 1.0


class RayRunner:
    """Answers a job on a cluster.

    Actors that the cluster has no room for wait, and join when there is room; those that die are replaced.

    Args:
        plan: what is the same for all actors.
        parts: how many parts the input is cut into.
        workers: most actors at once.
        resources: of each actor: "CPU", "GPU" or what the cluster calls its own, such as "TPU".
        address: of a cluster; None starts one here, or finds the one that this machine belongs to.
        on_part: called with done and all parts, whenever one is complete.
        stopping: whether to stop.

    Raises:
        UnsupportedError: Ray is not installed.
    """

    def __init__(
        self,
        plan: RayPlan,
        *,
        parts: int,
        workers: int,
        resources: Mapping[str, float] | None = None,
        address: str | None = None,
        on_part: Callable[[int, int], None] = lambda done, parts: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UnsupportedError("--runner ray needs Ray; pip install 'distaff[ray]'") from error
        self._ray: Any = ray
        self._output, self._parts, self._workers = plan.output, parts, workers
        self._on_part, self._stopping = on_part, stopping
        if not ray.is_initialized():
            ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        own = dict(resources or {"CPU": 1})
        cpus, gpus = own.pop("CPU", 0), own.pop("GPU", 0)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": own}
        self._actor = ray.remote(RayWorker).options(**options, max_concurrency=2, max_restarts=0)
        if not (gpus or own):  # Ray counts cores and leaves them to whoever wants them
            plan = replace(plan, cores=int(cpus))
        self._plan = ray.put(plan)  # once for all actors: of a long input it is some megabytes
        self._deaths: Counter[int] = Counter()
        self.replaced = 0
        """Actors that died and were replaced."""

    def run(self) -> None:
        """Answers every part.

        Raises:
            JobStoppedError: it was asked to stop.
            DistaffError: a part failed, or actors died with it MAX_DEATHS times.
        """
        waiting = deque(range(self._parts))
        starting: dict[Any, Any] = {}  # what says that an actor is ready, to the actor
        running: dict[Any, tuple[Any, int]] = {}  # the answer of a part, to its actor and part
        done = 0
        for _ in range(min(self._workers, self._parts)):
            self._start(starting)
        try:
            while done < self._parts:
                if self._stopping():
                    raise JobStoppedError(
                        f"{self._output}: stopped behind {done} of {self._parts} parts; --resume goes on"
                    )
                ready, _ = self._ray.wait([*starting, *running], num_returns=1, timeout=_TICK)
                for each in ready:
                    if each in starting:
                        actor, part = starting.pop(each), None
                    else:
                        actor, part = running.pop(each)
                    if not self._succeeded(each, part):
                        if part is not None:
                            waiting.appendleft(part)
                        self.replaced += 1
                        self._start(starting)
                        continue
                    if part is not None:
                        done += 1
                        self._on_part(done, self._parts)
                    if waiting:
                        part = waiting.popleft()
                        running[actor.answer.remote(part, self._parts)] = (actor, part)
        except BaseException:
            self._stop([*starting.values(), *(actor for actor, _ in running.values())], list(running))
            raise

    def _start(self, starting: dict[Any, Any]) -> None:
        actor = self._actor.remote(self._plan)
        starting[actor.ready.remote()] = actor

    def _succeeded(self, answer: Any, part: int | None) -> bool:
        """Whether an actor has done what it was asked; False where it has died."""
        place = -1 if part is None else part
        try:
            self._ray.get(answer)
        except self._ray.exceptions.RayActorError as error:
            self._deaths[place] += 1
            if self._deaths[place] >= MAX_DEATHS:
                what = "while they loaded the model" if part is None else f"with part {part}"
                raise DistaffError(f"{self._output}: actors died {MAX_DEATHS} times {what}: {error}") from error
            return False
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, DistaffError):
                raise cause from error
            raise DistaffError(f"{self._output}: an actor failed: {error}") from error
        return True

    def _stop(self, actors: list[Any], answers: list[Any]) -> None:
        """Lets actors put what they have into their journals."""
        for actor in actors:
            actor.stop.remote()
        if answers:
            self._ray.wait(answers, num_returns=len(answers), timeout=3.0)
        for actor in actors:
            self._ray.kill(actor)
