"""What single tokens are called in log-probabilities."""

from collections.abc import Sequence

from ...models.tokenizer import Tokenizer


class Spelling:
    """Names tokens.

    Args:
        tokenizer: None names them by id.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def to_bytes(self, token_id: int) -> bytes | None:
        """What a token stands for inside a text; None where nobody knows."""
        return None if self._tokenizer is None else self._tokenizer.token_bytes(token_id)

    def name(self, token_id: int) -> str:
        """The text of a token; one that is part of a character is named by its bytes, as OpenAI does it."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._name(token_id)
        return text

    def offsets(self) -> "Offsets":
        """For a text of its own."""
        return Offsets(self._tokenizer)

    def _name(self, token_id: int) -> str:
        data = self.to_bytes(token_id)
        if data is None:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Offsets:
    """Where in a text its tokens begin, in characters, as they come."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._detokenizer = None if tokenizer is None else tokenizer.detokenizer()
        self._length = 0

    def add(self, token_ids: Sequence[int]) -> list[int]:
        """Where these begin, behind those before them."""
        offsets = []
        for token in token_ids:
            offsets.append(self._length)
            if self._detokenizer is not None:
                self._length += len(self._detokenizer.add(token))
        return offsets
