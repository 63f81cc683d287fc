"""What a benchmark asks for: seeded lengths and tokens, or a file."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.errors import InvalidParameterError, UsageError

Span = tuple[int, int]
"""The least and the most, both included."""

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True)
class Item:
    """One request: a prompt of token ids, and exactly how many tokens to generate."""

    prompt: tuple[int, ...]
    max_tokens: int


def uniform_workload(
    *,
    requests: int = 64,
    prompt_len: Span = (32, 384),
    output_len: Span = (16, 192),
    seed: int = 0,
    vocab_size: int,
    shared_prefix: int = 0,
) -> tuple[Item, ...]:
    """Requests of evenly distributed lengths and random tokens.

    The lengths come first from `random.Random(seed)`: `randint(*prompt_len)` and `randint(*output_len)` in turn. So
    other programs can run the same.

    Args:
        shared_prefix: so many tokens stand before every prompt, the same for all requests.
        vocab_size: token ids are drawn below it.
    """
    for field, value in (("prompt_len", prompt_len), ("output_len", output_len)):
        if not 1 <= value[0] <= value[1]:
            raise InvalidParameterError(field, f"{value[0]}:{value[1]}", "LOW:HIGH with 1 <= LOW <= HIGH")
    if requests < 1:
        raise InvalidParameterError("requests", requests, "at least 1")
    if shared_prefix < 0:
        raise InvalidParameterError("shared_prefix", shared_prefix, "at least 0")
    source = random.Random(seed)
    lengths = [(source.randint(*prompt_len), source.randint(*output_len)) for _ in range(requests)]

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(source.randrange(vocab_size) for _ in range(count))

    prefix = tokens(shared_prefix)
    return tuple(Item(prefix + tokens(prompt), output) for prompt, output in lengths)


def read_workload(path: Path, encode: Callable[[str], Sequence[int]]) -> tuple[Item, ...]:
    """Requests from a file of JSON lines: {"prompt": text or token ids, "max_tokens": 128}.

    Raises:
        UsageError: names the line that is no request, or says that there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {path}: cannot be read ({error}); give a file of JSON lines") from error
    items = [_item(line, f"{path}:{number}", encode) for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise UsageError(f'--file {path}: holds no request; expected lines of {{"prompt": ..., "max_tokens": ...}}')
    return tuple(items)


def _item(line: str, where: str, encode: Callable[[str], Sequence[int]]) -> Item:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict) or "prompt" not in value or value.keys() - {"prompt", "max_tokens"}:
        raise UsageError(f'{where}: expected an object of "prompt" and "max_tokens", found {line.strip()[:80]}')
    prompt, max_tokens = value["prompt"], value.get("max_tokens", DEFAULT_MAX_TOKENS)
    if not _is_whole(max_tokens) or max_tokens < 1:
        raise UsageError(f"{where}: max_tokens is {max_tokens!r}, expected a whole number of at least 1")
    if isinstance(prompt, str):
        prompt = list(encode(prompt))
    if not isinstance(prompt, list) or not prompt or not all(map(_is_whole, prompt)):
        raise UsageError(f"{where}: the prompt is neither a text nor a list of token ids, or is empty")
    return Item(tuple(prompt), max_tokens)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
