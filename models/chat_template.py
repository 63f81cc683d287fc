"""Chat templates: messages to the prompt that a model was tuned on.

A template is a program from a stranger: it runs in a sandbox with a budget (chat_sandbox.py) and sees JSON data only.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import CodeType
from typing import Any

import jinja2

from .chat_sandbox import Budget, Sandbox
from .errors import ChatTemplateError

_MAX_SOURCE = 1_000_000  # characters; the longest templates in use have some 30,000
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for a message's chain of thought


class ChatTemplate:
    """The jinja2 templates of a model, by name.

    Args:
        templates: by name; "default" is used, or "tool_use" when there are tools and a template of that name.
        source: the file they are from, for messages.
        special_tokens: role ("bos_token", ...) to text: variables for the template.

    Raises:
        ChatTemplateError: a template does not compile.
    """

    def __init__(self, templates: Mapping[str, str], *, source: str, special_tokens: Mapping[str, str]) -> None:
        self.sources = dict(templates)
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._codes = {name: self._compile(text) for name, text in templates.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        now: datetime,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: {"role", "content", ...} each.
            now: what `strftime_now` prints.
            tools, documents: JSON schemas of tools, and texts to answer from, for templates that know them.
            name: which template, if not the one that fits.
            variables: more variables for the template.

        Raises:
            ChatTemplateError: the template refuses the messages, fails, or goes over its budget.
        """
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            raise ChatTemplateError(
                f"{self.source}: no chat template is named {name!r}, expected one of {', '.join(sorted(self.sources))}"
            )
        data: dict[str, Any] = {
            **self._special_tokens,
            **_plain(variables, "variables"),
            "messages": [_with_reasoning(message) for message in _plain(messages, "messages")],
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        sandbox = Sandbox(Budget())
        sandbox.globals["strftime_now"] = now.strftime
        template = jinja2.Template.from_code(sandbox, self._codes[name], sandbox.globals)
        try:
            return template.render(data)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"{self.source}: the chat template refused the messages: {error}") from error
        except Exception as error:  # a template can make any operation on its values fail
            raise ChatTemplateError(
                f"{self.source}: the chat template failed with {type(error).__name__}: {error}"
            ) from error

    def _compile(self, text: str) -> CodeType:
        if len(text) > _MAX_SOURCE:
            raise ChatTemplateError(
                f"{self.source}: the chat template has {len(text)} characters, expected at most {_MAX_SOURCE}"
            )
        try:
            return Sandbox(Budget()).compile(text)
        except Exception as error:  # RecursionError and the like besides TemplateSyntaxError
            raise ChatTemplateError(f"{self.source}: the chat template does not compile: {error}") from error


def _plain(value: Any, where: str) -> Any:
    """A copy made of JSON types alone: an object's methods would be within a template's reach."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a subclass can carry methods of its own
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        pairs = list(value.items())
        return {_plain(key, where): _plain(entry, f"{where}.{key}") for key, entry in pairs}
    if isinstance(value, (list, tuple)):
        entries = list(value)
        return [_plain(entry, f"{where}[{index}]") for index, entry in enumerate(entries)]
    raise ChatTemplateError(f"{where} is a {type(value).__name__}, expected a JSON value (text, number, list, object)")


def _with_reasoning(message: Any) -> Any:
    """Templates read a chain of thought under either name, as transformers gives it to them."""
    if not isinstance(message, dict):
        raise ChatTemplateError(f"a message is {message!r}, expected an object with role and content")
    values: dict[str, Any] = message
    found = [values[name] for name in _REASONING if values.get(name) is not None]
    return {"thinking": found[0], **values, "reasoning_content": found[0]} if found else values
