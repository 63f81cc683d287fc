"""Chat templates: the prompts of transformers, and what a hostile template may not do."""

import json
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from distaff.models import chat_sandbox
from distaff.models.chat_template import ChatTemplate
from distaff.models.errors import ChatTemplateError

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden_tokenizers" / "chat.json").read_text("ascii"))
NOW = datetime(2024, 7, 26, 12, 30)
HELLO = [{"role": "user", "content": "hi"}]


def template(text: str) -> ChatTemplate:
    return ChatTemplate({"default": text}, source="folder/chat_template.jinja", special_tokens={"bos_token": "<s>"})


def render(text: str, messages: Any = HELLO, **variables: Any) -> str:
    return template(text).render(messages, now=NOW, **variables)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['style']}-{case['chat']}")
def test_prompts_are_those_of_transformers(case: dict[str, Any]) -> None:
    text = GOLDEN["templates"][case["style"]]
    chat = ChatTemplate({"default": text}, source="golden", special_tokens=GOLDEN["special"])
    messages = GOLDEN["chats"][case["chat"]]
    if "error" in case:
        with pytest.raises(ChatTemplateError) as caught:
            chat.render(messages, now=NOW, **case["variables"])
        assert str(caught.value) == f"golden: the chat template refused the messages: {case['error']}"
    else:
        assert chat.render(messages, now=NOW, **case["variables"]) == case["prompt"]


def test_the_golden_cases_are_of_all_kinds() -> None:
    assert {case["style"] for case in GOLDEN["cases"]} == {"chatml", "qwen3", "llama3", "gemma", "mistral", "workout"}
    assert sum("error" in case for case in GOLDEN["cases"]) == 9
    assert sum("prompt" in case for case in GOLDEN["cases"]) == 63


def test_the_clock_is_what_the_caller_says() -> None:
    assert render("{{ strftime_now('%Y-%m-%d %H:%M') }}") == "2024-07-26 12:30"


def test_the_template_for_tools_is_used_when_there_are_tools() -> None:
    chat = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "rag"}, source="f", special_tokens={})
    assert chat.render(HELLO, now=NOW) == "plain"
    assert chat.render(HELLO, now=NOW, tools=[]) == "plain"
    assert chat.render(HELLO, now=NOW, tools=[{"name": "f"}]) == "tools"
    assert chat.render(HELLO, now=NOW, name="rag") == "rag"
    with pytest.raises(ChatTemplateError, match="f: no chat template is named 'none', expected one of default, rag"):
        chat.render(HELLO, now=NOW, name="none")


def test_each_rendering_has_a_budget_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "MAX_STEPS", 9000)
    chat = template("{% for i in range(900) %}{% for j in range(6) %}{% endfor %}{% endfor %}done")
    assert [chat.render(HELLO, now=NOW) for _ in range(3)] == ["done"] * 3


def test_long_conversations_are_within_the_budget() -> None:
    messages = [{"role": "user" if index % 2 == 0 else "assistant", "content": "x" * 3000} for index in range(501)]
    for style in ("chatml", "qwen3", "gemma", "mistral"):
        chat = ChatTemplate({"default": GOLDEN["templates"][style]}, source="g", special_tokens=GOLDEN["special"])
        assert len(chat.render(messages, now=NOW)) > 1_500_000


def test_templates_see_plain_data_only() -> None:
    class Role(StrEnum):
        USER = "user"

    class Text(str):
        def shout(self) -> str:
            return self.upper()

    text = "{{ messages[0].role }} {{ messages[0].content.shout is defined }} {{ messages[0].n }}"
    assert render(text, [{"role": Role.USER, "content": Text("hi"), "n": (1, 2.5, None, True)}]) == (
        "user False [1, 2.5, None, True]"
    )
    with pytest.raises(ChatTemplateError, match=r"messages\[0\]\.content is a PosixPath, expected a JSON value"):
        render(text, [{"role": "user", "content": Path("x")}])
    with pytest.raises(ChatTemplateError, match=r"variables\.callback is a builtin_function_or_method"):
        render(text, callback=print)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for x in messages", "does not compile: unexpected end of template"),
        ("{% unknown %}", "does not compile: Encountered unknown tag 'unknown'"),
        ("{{ x | nofilter }}", "does not compile: No filter named 'nofilter'"),
        ("{{ " + "(" * 3000 + ")" * 3000 + " }}", "does not compile: maximum recursion depth exceeded"),
        ("x" * 1_000_001, "has 1000001 characters, expected at most 1000000"),
        ("{{ raise_exception('no tools here') }}", "refused the messages: no tools here"),
        ("{{ missing.attribute }}", "refused the messages: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "failed with ZeroDivisionError"),
        ("{{ messages[0] + 1 }}", "failed with TypeError"),
        ("{% include 'x' %}", "failed with TypeError: no loader"),
        ("{{ ''.__class__ }}", "reads the attribute '__class__' of a str"),
        ("{{ ''['__class__'] }}", "reads the attribute '__class__' of a str"),
        ("{{ messages | attr('__class__') }}", "reads the attribute '__class__' of a list"),
        ("{{ messages | map(attribute='__class__') | list }}", "reads the attribute '__class__' of a dict"),
        ("{{ '{0.__class__}'.format('') }}", "reads the attribute '__class__' of a str"),
        ("{{ cycler.__init__.__globals__ }}", "reads the attribute '__init__'"),
        ("{{ raise_exception.__globals__ }}", "reads the attribute '__globals__'"),
        ("{{ messages.append(1) }}", "reads the attribute 'append' of a list"),
        ("{{ messages[0].update(a=1) }}", "reads the attribute 'update' of a dict"),
        ("{{ dict.mro() }}", "has no attribute 'mro'"),
        ("{{ namespace(__x=1) }}", "stores '__x' on a namespace"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "stores '_x' on a namespace"),
        ("{{ lipsum(10000) }}", "'lipsum' is undefined"),
    ],
)
def test_bad_templates_are_named(text: str, words: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render(text)
    assert str(caught.value).startswith("folder/chat_template.jinja: ") and words in str(caught.value)


GROW = "{%% set x = namespace(v='aaaaaaaaaa') %%}{%% for i in range(100) %%}{%% set x.v = %s %%}{%% endfor %%}"
LOOPS = [
    "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}" + "x" * 99 + "{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% set t %}{% for b in range(99999) %}"
    + "x" * 99
    + "{% endfor %}{% endset %}{% endfor %}",
    "{% for a in range(99999) %}{{ loop.length }}{% for b in range(9999) if b > a %}{{ b }}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ range(10 ** 12) }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}",
    "{{ '{:10000000000d}'.format(1) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ (1).to_bytes(10 ** 10) }}",
    "{{ [1] | batch(10 ** 10, 0) | list }}",
    "{{ {} | tojson(indent=10 ** 10) }}",
    "{{ range(99999) | map('center', 9999) | join | length }}",
    "{{ ('ab' * 1000000) | wordwrap(1) }}",
    *[GROW % growth for growth in ("x.v ~ x.v", "x.v + x.v", "x.v * 2", "x.v.replace('a', x.v)", "x.v.join(x.v)")],
    *[GROW % growth for growth in ("x.v | replace('a', x.v)", "x.v | join(x.v)", "[x.v, x.v] | join")],
]


@pytest.mark.parametrize("text", LOOPS, ids=range(len(LOOPS)))
def test_templates_that_would_never_end_do(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        chat_sandbox, "MAX_STEPS", 20_000
    )  # quicker, as is the next line; the test below has the real ones
    monkeypatch.setattr(chat_sandbox, "MAX_CHARACTERS", 200_000)
    started = time.monotonic()
    with pytest.raises(ChatTemplateError):
        render(text)
    assert time.monotonic() - started < 20  # each takes well below a second; a machine may be busy


def test_the_budget_is_large_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (chat_sandbox.MAX_STEPS, chat_sandbox.MAX_CHARACTERS) == (300_000, 16_000_000)
    assert len(render("{{ 'x' * 16000000 }}")) == 16_000_000
    with pytest.raises(ChatTemplateError, match="builds a string or list of 16000001 entries, at most 16000000"):
        render("{{ 'x' * 16000001 }}")
    with pytest.raises(ChatTemplateError, match="prints more than 16000000 characters"):
        render("{{ 'x' * 16000000 }}{{ messages[0].role }}")
    monkeypatch.setattr(chat_sandbox, "MAX_STEPS", 100)
    assert render("{% for i in range(99) %}{% endfor %}done") == "done"
    with pytest.raises(ChatTemplateError, match="loops or calls more than 100 times, perhaps for ever"):
        render("{% for i in range(100) %}{% endfor %}done")
