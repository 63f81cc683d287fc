"""Requests with their moments from a file: recorded traffic."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backends.errors import UsageError
from .words import WORDS, spelled

_EXPECTED = '{"at": seconds, "prompt": text or token ids, "max_tokens": N} or {"at", "prompt_len", "output_len"}'
_BLOCK = 512  # tokens that one hash of a trace stands for


@dataclass(frozen=True)
class Ask:
    """One request of a load.

    Attributes:
        at: seconds from the start until it is sent; a closed loop does not ask.
        max_tokens: how many tokens to generate, exactly: end tokens are ignored.
    """

    prompt: str | tuple[int, ...]
    max_tokens: int
    at: float = 0.0


def message_of(ask: Ask) -> dict[str, str]:
    """A prompt as a user's message.

    Raises:
        UsageError: it is no text.
    """
    if not isinstance(ask.prompt, str):
        raise UsageError("a conversation is made of texts, and this prompt is token ids: leave --chat out")
    return {"role": "user", "content": ask.prompt}


def read_trace(path: Path, *, vocab_size: int | None, as_text: bool = False, seed: int) -> tuple[Ask, ...]:
    """Requests from JSON lines, in the order of their moments.

    A line holds a prompt, or only lengths: then its tokens are drawn from `seed`. The names of the public traces
    (`timestamp` in milliseconds, `input_length`, `output_length`, `hash_ids`: equal hashes are equal blocks of 512
    tokens) are understood as well.

    Args:
        vocab_size: token ids are drawn below it; None: nobody knows.
        as_text: draw words instead of token ids.

    Raises:
        UsageError: names the line that is no request, or says that there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--trace {path}: cannot be read ({error}); give a file of JSON lines") from error
    draw = _Draw(len(WORDS) if as_text else vocab_size, as_text, seed, random.Random(seed))
    asks = [_ask(line, f"{path}:{number}", draw) for number, line in enumerate(lines, 1) if line.strip()]
    if not asks:
        raise UsageError(f"--trace {path}: holds no request; expected lines of {_EXPECTED}")
    first = min(ask.at for ask in asks)
    moved = (Ask(ask.prompt, ask.max_tokens, ask.at - first) for ask in asks)
    return tuple(sorted(moved, key=lambda ask: ask.at))


@dataclass(frozen=True)
class _Draw:
    """How prompts are drawn of which the length alone is known."""

    vocab_size: int | None
    as_text: bool
    seed: int
    source: random.Random


def _ask(line: str, where: str, draw: _Draw) -> Ask:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected {_EXPECTED}, found {line.strip()[:80]}")
    at: Any = value["timestamp"] / 1e3 if _is_number(value.get("timestamp")) else value.get("at", 0.0)
    max_tokens = _first(value, "max_tokens", "output_len", "output_length")
    if not _is_number(at) or not _is_whole(max_tokens):
        raise UsageError(f"{where}: expected {_EXPECTED}, found {line.strip()[:80]}")
    prompt = value.get("prompt")
    if prompt is None:
        prompt = _drawn(value, where, draw)
    if isinstance(prompt, list) and prompt and all(map(_is_whole, prompt)):
        prompt = tuple(prompt)
    if not prompt or not isinstance(prompt, str | tuple):
        raise UsageError(f"{where}: the prompt is neither a text nor a list of token ids, or is empty")
    return Ask(prompt, max(1, max_tokens), float(at))


def _drawn(value: Mapping[str, Any], where: str, draw: _Draw) -> str | tuple[int, ...]:
    """A prompt of the length that a line states; what has the same hash gets the same tokens."""
    length, size = _first(value, "prompt_len", "input_length"), draw.vocab_size
    if not _is_whole(length) or length < 1:
        raise UsageError(f"{where}: expected {_EXPECTED}")
    if size is None:
        raise UsageError(f"{where}: states a length, and the server did not say how many tokens it knows: --vocab-size")
    tokens: list[int] = []
    for block in value.get("hash_ids") or ():
        of_block = random.Random(f"{draw.seed} {block}")
        tokens += [of_block.randrange(size) for _ in range(_BLOCK)]
    tokens += [draw.source.randrange(size) for _ in range(length - len(tokens))]
    return spelled(tokens[:length]) if draw.as_text else tuple(tokens[:length])


def _first(value: Mapping[str, Any], *names: str) -> Any:
    return next((value[name] for name in names if name in value), None)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
