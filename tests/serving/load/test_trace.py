"""Files of requests with their moments."""

import json
from pathlib import Path

import pytest

from distaff.backends.errors import UsageError
from distaff.serving.load.trace import Ask, message_of, read_trace
from distaff.serving.load.words import WORDS


def written(folder: Path, *lines: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_prompts_and_lengths(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"at": 3.5, "prompt": "Hello", "max_tokens": 4}',
        "",
        '{"at": 1.5, "prompt": [5, 6], "max_tokens": 0}',
        '{"at": 2.0, "prompt_len": 3, "output_len": 7}',
    )
    asks = read_trace(path, vocab_size=10, seed=1)
    assert asks[0] == Ask((5, 6), 1, 0.0) and asks[2] == Ask("Hello", 4, 2.0)
    assert (len(asks[1].prompt), asks[1].max_tokens, asks[1].at) == (3, 7, 0.5)
    assert asks == read_trace(path, vocab_size=10, seed=1) != read_trace(path, vocab_size=10, seed=2)


def test_the_names_of_public_traces(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]},
        {"timestamp": 3000, "input_length": 600, "output_length": 6, "hash_ids": [7, 9]},
    ]
    first, second = read_trace(written(tmp_path, *map(json.dumps, lines)), vocab_size=1000, seed=0)
    assert (first.at, second.at, len(first.prompt), len(second.prompt)) == (0.0, 2.0, 700, 600)
    assert first.prompt[:512] == second.prompt[:512] and first.prompt[512:600] != second.prompt[512:600]


def test_drawn_prompts_may_be_words(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"at": 0, "prompt_len": 40, "output_len": 7}', '{"at": 1, "prompt": [5], "max_tokens": 1}'
    )
    drawn, given = read_trace(path, vocab_size=None, as_text=True, seed=1)
    message = message_of(drawn)
    assert message["role"] == "user" and len(message["content"].split()) == 40
    assert set(message["content"].split()) <= set(WORDS)
    with pytest.raises(UsageError, match="leave --chat out"):
        message_of(given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected"),
        ('{"at": 1}', '"at": seconds'),
        ('{"at": -1, "prompt": "x", "max_tokens": 1}', '"at": seconds'),
        ('{"at": 1, "prompt": [], "max_tokens": 1}', "is empty"),
        ('{"at": 1, "prompt": ["a"], "max_tokens": 1}', "neither"),
        ('{"at": 1, "prompt_len": 0, "output_len": 1}', "expected"),
        ('{"at": 1, "prompt_len": 2, "output_len": 1}', "--vocab-size"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        read_trace(written(tmp_path, '{"at": 0, "prompt": "x", "max_tokens": 1}', line), vocab_size=None, seed=0)
    assert "trace.jsonl:2" in str(raised.value)


def test_no_file_and_no_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "none", vocab_size=5, seed=0)
    with pytest.raises(UsageError, match="holds no request"):
        read_trace(written(tmp_path, ""), vocab_size=5, seed=0)
