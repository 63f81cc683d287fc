"""A conversation with a model: what was said, and how it goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...backends.errors import UsageError
from .client import Client
from .results import Result

Message = dict[str, Any]


class Conversation:
    """Holds the messages; `say` adds the next question and its answer.

    Args:
        client: where the answers come from.
        system: what stands before everything.
        sampling: as Client.generate takes it.
    """

    def __init__(self, client: Client, *, system: str | None = None, sampling: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self.system = system
        self.sampling = dict(sampling or {})
        self.turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """All of it, as a server takes it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def say(self, text: str, on_text: Callable[[str], None]) -> Result:
        """Asks; the answer goes to `on_text` piece by piece.

        An answer that is broken off, by KeyboardInterrupt or a failure, is kept as far as it came; a question that got
        no answer is taken back, so that it can be asked again.
        """
        self.turns.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            with self._client.generate_stream(self.messages, **self.sampling) as stream:
                for piece in stream.text():
                    said.append(piece)
                    on_text(piece)
                return stream.result()
        finally:
            if said:
                self.turns.append({"role": "assistant", "content": "".join(said)})
            else:
                self.turns.pop()

    def retry(self, on_text: Callable[[str], None]) -> Result:
        """Asks the last question once more; what was said stays where that brings nothing.

        Raises:
            UsageError: nothing was asked yet.
        """
        asked = next((at for at in reversed(range(len(self.turns))) if self.turns[at]["role"] == "user"), None)
        if asked is None:
            raise UsageError("nothing was asked yet")
        said, self.turns = self.turns[asked:], self.turns[:asked]
        try:
            return self.say(said[0]["content"], on_text)
        finally:
            if len(self.turns) == asked:
                self.turns += said

    def reset(self) -> None:
        """Forgets what was said, but not the system message."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Writes the messages as a JSON array, which `load` and other programs read. Raises UsageError."""
        try:
            path.write_text(json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})") from error

    def load(self, path: Path) -> None:
        """Goes on where a saved conversation ended. Raises UsageError."""
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: is no conversation ({error}); expected a JSON array of messages") from error
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise UsageError(f'{path}: is no conversation; expected a JSON array of {{"role": ..., "content": ...}}')
        self.system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        self.turns = messages


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
