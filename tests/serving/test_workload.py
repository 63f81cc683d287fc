"""Workloads: the same lengths as other programs make of the seed, and files that say what is wrong with them."""

import random
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.serving.workload import Item, read_workload, uniform_workload


def test_the_default_is_the_workload_that_peers_are_measured_with() -> None:
    items = uniform_workload(vocab_size=49152)
    source = random.Random(0)
    lengths = [(source.randint(32, 384), source.randint(16, 192)) for _ in range(64)]
    assert [(len(item.prompt), item.max_tokens) for item in items] == lengths
    assert sum(len(item.prompt) for item in items) == 14_631
    assert sum(item.max_tokens for item in items) == 6_642
    assert all(0 <= token < 49152 for item in items for token in item.prompt)
    assert len({item.prompt[:4] for item in items}) == 64


def test_a_seed_is_a_workload() -> None:
    first = uniform_workload(requests=5, seed=3, vocab_size=100)
    assert uniform_workload(requests=5, seed=3, vocab_size=100) == first
    assert uniform_workload(requests=5, seed=4, vocab_size=100) != first


def test_a_shared_prefix_comes_before_every_prompt() -> None:
    items = uniform_workload(requests=6, prompt_len=(4, 9), output_len=(2, 2), vocab_size=1000, shared_prefix=300)
    assert len({item.prompt[:300] for item in items}) == 1
    assert len({item.prompt[300:] for item in items}) == 6
    assert all(304 <= len(item.prompt) <= 309 and item.max_tokens == 2 for item in items)


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_len": (0, 4)}, {"prompt_len": (5, 4)}, {"output_len": (0, 0)}, {"requests": 0}, {"shared_prefix": -1}],
)
def test_what_cannot_be_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        uniform_workload(**wrong, vocab_size=10)


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_file_holds_texts_or_token_ids(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "ab", "max_tokens": 3}\n\n{"prompt": [7, 8]}\n')
    assert read_workload(file, encode) == (Item((97, 98), 3), Item((7, 8), 128))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "requests.jsonl:2: not JSON"),
        ("[1]", "expected an object"),
        ('{"max_tokens": 1}', "expected an object"),
        ('{"prompt": "a", "temperature": 1}', "expected an object"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens is True"),
        ('{"prompt": ""}', "is empty"),
        ('{"prompt": [1, "2"]}', "list of token ids"),
        ('{"prompt": 5}', "list of token ids"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(UsageError, match=message) as raised:
        read_workload(file, encode)
    assert "requests.jsonl:2" in str(raised.value)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_workload(tmp_path / "none.jsonl", encode)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="holds no request"):
        read_workload(tmp_path / "empty.jsonl", encode)
