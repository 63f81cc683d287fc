"""The table of abuse in docs/serving.md names tests that there are."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parents[1] / "docs" / "serving.md"


def test_each_case_is_shown_by_a_test() -> None:
    table = PAGE.read_text().partition("| what comes |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) == 15
    for row in rows:
        named = re.findall(r"\[(test_\w+)\]\(\.\./tests/serving/([\w/]+\.py)\)", row)
        assert named, row
        for test, file in named:
            assert f"def {test}(" in (TESTS / file).read_text(), f"{file} has no {test}"
