"""The report in a real browser: the plot, what a pointer brings up, filters, and chips as they stand."""

import asyncio
import base64
from pathlib import Path

import pytest

from distaff.sharding.sweep.page import page
from distaff.sharding.sweep.slices import parse_slice
from distaff.sharding.sweep.sweep import plan

from ...serving.http.browser import browsing, find_chromium
from .asked import request

CHROMIUM = find_chromium()
CIRCLES = "document.querySelectorAll('circle').length"
FRONT = "document.getElementById('front').getAttribute('points').split(' ').length"
DETAIL = "document.getElementById('detail').textContent"
DEVICES = "[...document.querySelectorAll('#grid title')].map((title) => title.textContent)"
MIDDLE = """(() => {{ const mark = document.querySelector('circle[data-id="{}"]');
                    mark.parentNode.append(mark);  // above all others
                    const box = mark.getBoundingClientRect();
                    return [box.x + box.width / 2, box.y + box.height / 2]; }})()"""


def test_text_of_the_sweep_cannot_end_its_script() -> None:
    found = plan(request(phase="decode", batches=(8,), axes=("tensor",), model="</script><!--"))
    assert page(found).count("</script>") == 2 and "</script><!--" not in page(found)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or name one with $CHROMIUM")
def test_the_report_shows_details_on_hover(tmp_path: Path) -> None:
    sweep = plan(request(slices=(parse_slice("v5e:2x2"), parse_slice("v4:2x2x1"))))
    path = tmp_path / "report.html"
    path.write_text(page(sweep))
    rows = {row["id"]: row for row in sweep.rows if row["fits"]}

    async def check(chromium: str) -> None:
        async with browsing(chromium, tmp_path / "profile") as shown:
            await shown.open(path.as_uri())
            size = {"width": 1180, "height": 1120, "deviceScaleFactor": 1, "mobile": False}
            await shown.send("Emulation.setDeviceMetricsOverride", **size)
            for _ in range(100):
                if await shown.evaluate(CIRCLES):
                    break
                await asyncio.sleep(0.1)
            assert await shown.evaluate(CIRCLES) == len(rows)
            assert await shown.evaluate(FRONT) == sum(row["pareto"] for row in rows.values())
            for hw, devices, last in (
                ("v5e:2x2", 4, "device 3, chip 1,1: "),
                ("v4:2x2x1", 8, "device 7, chip 1,1,0: "),
            ):
                wanted = next(row for row in rows.values() if row["hw"] == hw)
                x, y = await shown.evaluate(MIDDLE.format(wanted["id"]))
                await shown.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
                told = await shown.evaluate(DETAIL)
                assert told.startswith(wanted["id"]) and wanted["layout"] in told and "HBM: weights" in told
                drawn = await shown.evaluate(DEVICES)
                assert len(drawn) == devices
                assert drawn[-1] == last + ", ".join(f"{axis} {size - 1}" for axis, size in wanted["mesh"].items())
            picture = await shown.send("Page.captureScreenshot", format="png")
            (tmp_path / "report.png").write_bytes(base64.b64decode(picture["data"]))
            await shown.evaluate("document.querySelector('input[value=\"v5e:2x2\"]').click()")
            assert await shown.evaluate(CIRCLES) == sum(row["hw"] != "v5e:2x2" for row in rows.values())
            assert shown.problems == [] and shown.requested == [path.as_uri()]

    asyncio.run(check(CHROMIUM or ""))
