"""Pictures are there, show something, and need nothing from outside."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from distaff.backends.errors import UsageError
from distaff.serving.goodput import Goodput
from distaff.serving.load import plots
from distaff.serving.load.statistics import summary
from distaff.serving.load.sweep import Plan, find_knee

from .test_statistics import made_up
from .test_sweep import Queue


def size(picture: Path) -> tuple[int, int]:
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    records, _ = made_up(50, seed=1)
    picture, page = plots.plot_run(tmp_path / "new" / "run.png", "tiny <b>", records, summary(records))
    assert (picture, page) == (tmp_path / "new" / "run.png", tmp_path / "new" / "run.html")
    assert size(picture) == (1320, 840)
    text = page.read_text()
    assert "tiny &lt;b&gt;" in text and "ttft_ms p50" in text and text.count("<svg") == 1
    assert not re.search(r'(?:src|href)="(?!#)', text), "something from outside"
    plots.plot_run(tmp_path / "empty", "nothing came", [], summary([]))


@pytest.mark.slow
def test_a_sweep(tmp_path: Path) -> None:
    found = asyncio.run(find_knee(Queue(0.1).measure, Plan(refinements=1), Goodput(ttft=500)))
    picture, page = plots.plot_sweep(tmp_path / "sweep", "sweep", found)
    assert size(picture) == (1320, 840)
    assert page.read_text().count("<tr>") == 1 + len(found["points"])


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"distaff\[plots\]"):
        plots.check_plots()
