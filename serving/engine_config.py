"""How an engine batches."""

from dataclasses import dataclass
from typing import get_args

from ..backends.errors import InvalidParameterError
from .policies import Policy
from .scheduler_config import SchedulerConfig


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is built with.

    Args:
        max_batch: sequences that run at once.
        context: longest text in tokens, prompt included; None is the model's own limit.
        kv_memory: bytes for the KV cache; None takes a share of what is free.
        policy, batch_timeout: when waiting requests join the batch; seconds.
        max_step_tokens: most tokens in a step: decode rows, and prompts in chunks.
        max_decode_steps: most decode steps that run on the device before the host looks.
        target_burst: seconds that such a run may take, so that tokens keep streaming.
        deterministic: a row's numbers do not depend on its neighbours, bit for bit, in every dtype.
        fixed_chunk: cuts prompts at multiples of this many positions only; None cuts anywhere.
        prefix_cache: whether prompts share the pages of what they begin with.
        aging: seconds of waiting that raise a request by one priority.
        expert_load: count how often each expert of a mixture is chosen; the counts are read with each step's tokens.

    Raises:
        InvalidParameterError: a value is out of range.
    """

    max_batch: int = 32
    context: int | None = None
    kv_memory: int | None = None
    policy: Policy = "continuous"
    batch_timeout: float = 0.05
    max_step_tokens: int = 512
    max_decode_steps: int = 8
    target_burst: float = 0.25
    deterministic: bool = False
    fixed_chunk: int | None = None
    prefix_cache: bool = True
    aging: float = 10.0
    expert_load: bool = False

    def __post_init__(self) -> None:
        for field, low in (("max_batch", 1), ("max_step_tokens", 1), ("max_decode_steps", 1)):
            if getattr(self, field) < low:
                raise InvalidParameterError(field, getattr(self, field), f"a whole number from {low}")
        for field in ("context", "kv_memory"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidParameterError(field, value, "a whole number from 1, or None")
        for field in ("batch_timeout", "target_burst"):
            if not getattr(self, field) >= 0:
                raise InvalidParameterError(field, getattr(self, field), "seconds, 0 or more")
        if not self.aging > 0:
            raise InvalidParameterError("aging", self.aging, "seconds above 0")
        if self.policy not in get_args(Policy):
            raise InvalidParameterError("policy", self.policy, " or ".join(get_args(Policy)))

    def scheduler(self, num_slots: int) -> SchedulerConfig:
        """What it tells the scheduler of a device with so many rows."""
        return SchedulerConfig(
            policy=self.policy,
            max_batch=num_slots,
            batch_timeout=self.batch_timeout,
            max_step_tokens=self.max_step_tokens,
            max_decode_steps=self.max_decode_steps,
            fixed_chunk=self.fixed_chunk,
            aging_seconds=self.aging,
            prefix_cache=self.prefix_cache,
        )
