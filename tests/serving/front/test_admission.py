"""Limits, of everybody and of a tenant."""

import pytest

from distaff.serving.front import (
    Call,
    FrontLimits,
    OverloadedError,
    TenantLimits,
)

from ..served import serving
from .calls import params, read, run


def test_limits_refuse_with_a_time_to_come_back() -> None:
    async def check() -> None:
        limits = FrontLimits(
            max_streams=4, max_tokens_in_flight=120, tenants={"small": TenantLimits(max_streams=1, max_queued=1)}
        )
        async with serving(limits=limits) as served:
            served.programs.gate.clear()
            one = await served.front.open(Call("a", params(10), tenant="small"))
            with pytest.raises(OverloadedError, match="this client") as caught:
                await served.front.open(Call("a", params(10), tenant="small"))
            assert 0 < caught.value.retry_after <= 30
            two = await served.front.open(Call("a", params(100), tenant="other"))
            assert served.front.load().tokens_in_flight == 112
            with pytest.raises(OverloadedError, match="tokens in flight"):
                await served.front.open(Call("a", params(100)))
            three, four = [await served.front.open(Call("a", params(1))) for _ in range(2)]
            with pytest.raises(OverloadedError, match="the server has 4 calls under way"):
                await served.front.open(Call("a", params(1)))
            assert served.front.counters.refused == {"overloaded": 3}
            served.programs.gate.set()
            for stream in (one, two, three, four):
                await stream.result()
            await served.check_empty()
            await read(await served.front.open(Call("a", params(3), tenant="small")))

    run(check())
