"""How work is cut and who goes first."""

from dataclasses import dataclass

from ..backends.errors import InvalidParameterError
from .policies import POLICIES, Policy


@dataclass(frozen=True)
class SchedulerConfig:
    """What the scheduler is told once.

    Attributes:
        policy: see policies.Gate.
        max_batch: slots, that is sequences that run at once.
        batch_timeout: seconds, of the dynamic policy.
        max_step_tokens: most tokens of a step, whatever the buckets hold.
        max_decode_steps: most decode steps in one call; `Scheduler.max_decode_steps` starts with it.
        fixed_chunk: cuts prompts at multiples of this many positions only; None cuts anywhere.
        aging_seconds: of waiting that make up for one class of priority.
        prefix_cache: whether texts are kept and found again.

    Raises:
        InvalidParameterError: a value is out of range.
    """

    policy: Policy = "continuous"
    max_batch: int = 32
    batch_timeout: float = 0.05
    max_step_tokens: int = 512
    max_decode_steps: int = 8
    fixed_chunk: int | None = None
    aging_seconds: float = 10.0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InvalidParameterError("policy", self.policy, " or ".join(POLICIES))
        for name in ("max_batch", "max_step_tokens", "max_decode_steps"):
            if getattr(self, name) < 1:
                raise InvalidParameterError(name, getattr(self, name), "at least 1")
        if self.fixed_chunk is not None and not 1 <= self.fixed_chunk <= self.max_step_tokens:
            raise InvalidParameterError("fixed_chunk", self.fixed_chunk, f"1 to max_step_tokens {self.max_step_tokens}")
        if not self.batch_timeout >= 0:
            raise InvalidParameterError("batch_timeout", self.batch_timeout, "seconds, at least 0")
        if not self.aging_seconds > 0:
            raise InvalidParameterError("aging_seconds", self.aging_seconds, "seconds, more than 0")
