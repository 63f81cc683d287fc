"""Settings of the scheduler that are refused."""

import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.serving.scheduler_config import SchedulerConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_batch", 0), ("max_step_tokens", 0), ("max_decode_steps", 0), ("fixed_chunk", 1000), ("batch_timeout", -1.0),
     ("aging_seconds", 0.0)],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidParameterError, match=rf"^{field} is "):
        SchedulerConfig(**{field: value})  # pyright: ignore[reportArgumentType]
