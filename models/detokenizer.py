"""Token ids to text, one id at a time.

Every decoder that the supported tokenizers use comes down to bytes per token followed by UTF-8 decoding, so the
detokenizer keeps at most three bytes back (the start of a code point) and does constant work per token.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2})>")
_SUPPORTED = "ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Metaspace, Fuse and Strip"


def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_ALPHABET = byte_alphabet()


@dataclass(frozen=True)
class Spelling:
    """How tokens spell text: what a tokenizer's decoder does, as data.

    Attributes:
        byte_level: tokens are written in the byte alphabet; otherwise they are text.
        byte_fallback: tokens such as `<0x0A>` stand for one byte.
        replacements: (old, new) pairs applied inside every token.
        metaspace: a character written for a space and dropped from the first token; "" if none.
        strip_left: how many `strip_character` are taken off the front of the text.
        separator: what stands between two tokens.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    metaspace: str = ""
    strip_left: int = 0
    strip_character: str = " "
    separator: str = ""

    @classmethod
    def from_decoder(cls, decoder: Mapping[str, Any] | None, *, source: str) -> "Spelling":
        """Read the `decoder` object of a tokenizer.json. Raises TokenizerError for kinds that are not streamable."""
        if decoder is None:
            return cls(separator=" ")
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        found: dict[str, Any] = {}
        replacements: list[tuple[str, str]] = []
        fused = False
        for index, step in enumerate(steps):
            kind = step["type"]
            if kind == "ByteLevel" and len(steps) == 1:
                found["byte_level"] = True
            elif kind == "Replace" and "String" in step["pattern"] and not fused and "byte_fallback" not in found:
                replacements.append((step["pattern"]["String"], step["content"]))
            elif kind == "ByteFallback" and not fused:
                found["byte_fallback"] = True
            elif kind == "Metaspace" and not fused:
                replacements.append((step["replacement"], " "))
                found["metaspace"] = step["replacement"] if step.get("prepend_scheme", "always") != "never" else ""
            elif kind == "Fuse":
                fused = True
            elif kind == "Strip" and fused and step["stop"] == 0 and index == len(steps) - 1:
                found["strip_left"], found["strip_character"] = step["start"], step["content"]
            else:
                raise TokenizerError(
                    f"{source}: decoder step {index} is {kind!r} ({step}), expected {_SUPPORTED}; "
                    "this kind of tokenizer cannot be decoded as a stream"
                )
        return cls(replacements=tuple(replacements), **found)

    def to_bytes(self, token: str, *, first: bool = False) -> bytes:
        """The bytes that a token stands for; the first token of a text loses its metaspace."""
        if self.byte_level:
            mapped = [_ALPHABET.get(character) for character in token]
            # A token with a character outside the alphabet (an added token with a space, say) stands for itself.
            return bytes(byte for byte in mapped if byte is not None) if None not in mapped else token.encode()
        if first and self.metaspace:
            token = token.replace(self.metaspace, "")
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()


class Detokenizer:
    """Turns ids into text as they arrive.

    `add` returns the text that can no longer change and never half a code point; `finish` returns the rest. The
    pieces joined are what `Tokenizer.decode` returns for all the ids. Bytes that are no UTF-8 become U+FFFD: one for
    each maximal broken sequence with byte-level vocabularies (as `tokenizers` does), one for each byte with
    SentencePiece vocabularies (as SentencePiece does; `tokenizers` gives up on the whole run of byte tokens, which
    cannot be known before the run ends).

    Args:
        spelling: what the tokens mean.
        token_of: the token of an id, None for ids to leave out (unknown to the vocabulary, or special and skipped).
    """

    def __init__(self, spelling: Spelling, token_of: Callable[[int], str | None]) -> None:
        self._spelling = spelling
        self._token_of = token_of
        self._pending = b""
        self._first = True
        self._to_strip = spelling.strip_left

    def add(self, token_id: int) -> str:
        """The text that became certain with this id. Raises TokenizerError for an id that cannot be one."""
        token = self._token_of(token_id)
        if token is None:
            return ""
        data = self._spelling.to_bytes(token, first=self._first)
        if not self._first:
            data = self._spelling.separator.encode() + data
        self._first = False
        return self._strip(self._decode(self._pending + data, final=False))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished code point. The detokenizer starts afresh afterwards."""
        rest = self._strip(self._decode(self._pending, final=True))
        self._first, self._to_strip = True, self._spelling.strip_left
        return rest

    def _decode(self, data: bytes, *, final: bool) -> str:
        text: list[str] = []
        self._pending = b""
        start = 0
        while start < len(data):
            try:
                text.append(data[start:].decode())
                break
            except UnicodeDecodeError as error:
                text.append(data[start : start + error.start].decode())
                unfinished = error.reason == "unexpected end of data"
                if unfinished and not final:
                    self._pending = data[start + error.start :]
                    break
                text.append("\ufffd" * (1 if self._spelling.byte_level else error.end - error.start))
                start += error.end
        return "".join(text)

    def _strip(self, text: str) -> str:
        while self._to_strip and text:
            if not text.startswith(self._spelling.strip_character):
                self._to_strip = 0
                break
            text = text[len(self._spelling.strip_character) :]
            self._to_strip -= 1
        return text
