"""A talk in the terminal: lines in, answers out."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.errors import DistaffError, UsageError
from .output import TextStream

if TYPE_CHECKING:
    from ..serving.client import Result
    from ..serving.client.conversation import Conversation

HELP = """\
/system TEXT   begin anew, with this before the conversation; without TEXT, with nothing
/reset         forget what was said
/retry         ask the last question once more
/set NAME=X    change a sampling parameter, such as temperature=0; without X, back to its default
/save FILE     write the conversation as JSON
/load FILE     go on with a saved one
/help          these lines
/quit          leave, as does Ctrl-D
Ctrl-C ends an answer, or leaves. A line that ends in \\ goes on with the next one."""


def statistics(result: "Result") -> str:
    """What an answer took, on one line."""
    usage, times = result.usage, result.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    decoded = usage.completion_tokens - 1
    speed = f", {decoded / times.decode:.1f} tokens/s" if times.decode > 0 and decoded > 0 else ""
    ended = "" if result.finish_reason in ("eos", "stop_string", "stop_token") else f", ended by {result.finish_reason}"
    return (
        f"[{usage.prompt_tokens}{cached} + {usage.completion_tokens} tokens; first token after "
        f"{times.first_token:.2f} s{speed}{ended}]"
    )


class Terminal:
    """Reads lines, shows answers.

    Args:
        read: asks for a line; raises EOFError at the end.
    """

    def __init__(
        self, conversation: "Conversation", model: str, target: str, *, read: Callable[[str], str] | None = None
    ) -> None:
        from rich.console import Console

        self._conversation, self._model, self._target = conversation, model, target
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._read = read or input
        self._running = True
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/system": self._system,
            "/reset": self._reset,
            "/retry": self._retry,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: self._note(HELP),
            "/quit": lambda _: self._quit(),
        }

    def run(self) -> None:
        """Goes on until the user leaves."""
        with contextlib.suppress(ImportError):
            import_module("readline")  # lines can be edited, and earlier ones called back
        self._note(f"{self._model} at {self._target}; /help tells what there is besides talking")
        for line in self._lines():
            try:
                self._take(line)
            except DistaffError as error:
                self._console.print(f"error: {error}", style="red", markup=False)
            if not self._running:
                return

    def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if not name.startswith("/"):
            self._show(lambda write: self._conversation.say(line, write))
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            self._note(f"there is no {name}; there are\n{HELP}")

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._read("> ")
                while line.endswith("\\"):
                    line = line[:-1] + "\n" + self._read(". ")
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            if line.strip():
                yield line

    def _show(self, ask: "Callable[[Callable[[str], None]], Result]") -> None:
        """Shows an answer as it comes, and what it took."""
        stream = TextStream()
        note = "[stopped]"
        with contextlib.suppress(KeyboardInterrupt):
            try:
                note = statistics(ask(stream.write))
            finally:
                stream.finish()
        self._note(note)

    def _system(self, text: str) -> None:
        self._conversation.reset()
        self._conversation.system = text or None
        self._note("a new conversation")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._note("a new conversation")

    def _retry(self, _: str) -> None:
        self._show(self._conversation.retry)

    def _set(self, text: str) -> None:
        name, equals, value = text.partition("=")
        if not equals:
            shown = {key: each for key, each in self._conversation.sampling.items() if each is not None}
            raise UsageError(f"expected NAME=X, such as temperature=0; set are {shown}")
        self._conversation.sampling.pop(name.strip(), None)
        if value.strip():
            self._conversation.sampling[name.strip()] = _value(value.strip())

    def _save(self, text: str) -> None:
        self._conversation.save(Path(_named(text)))
        self._note(f"wrote {text}")

    def _load(self, text: str) -> None:
        self._conversation.load(Path(_named(text)))
        self._note(f"{len(self._conversation.turns)} messages")

    def _quit(self) -> None:
        self._running = False

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)


def _named(text: str) -> str:
    if not text:
        raise UsageError("expected the name of a file")
    return text


def _value(text: str) -> Any:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
