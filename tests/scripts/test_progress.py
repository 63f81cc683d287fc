"""The display of a terminal, and where control characters end."""

import io

import pytest

from distaff.scripts.output import size_text
from distaff.scripts.progress import ProgressDisplay, Step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_come_and_go_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressDisplay("m") as display:
        display(Step("load", 1, 2))
        display(Step("compile", 1, 0))
        display.close()
        shown = len(terminal.getvalue())
        display(Step("compile", 2, 2))
    assert "Loading m" in terminal.getvalue() and "Compiling m" in terminal.getvalue()
    assert len(terminal.getvalue()) == shown, "nothing may be drawn over the text"


def test_a_log_gets_one_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("m") as display:
        for step in (Step("load", 0, 2), Step("load", 2, 2), Step("compile", 1, 2), Step("other", 1, 1)):
            display(step)
    assert capsys.readouterr().err == "Loading m\nCompiling m\nother m\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (98362432, "98.4 MB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes_as_people_say_them(size: int, text: str) -> None:
    assert size_text(size) == text
