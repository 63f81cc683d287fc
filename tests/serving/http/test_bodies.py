"""Every field of a request body is honoured, or refused by name: ours and OpenAI's."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from distaff.backends.errors import InvalidParameterError, UnsupportedError
from distaff.serving.capabilities import PARAMETERS, Parameter
from distaff.serving.front import Call, Chat
from distaff.serving.http.bodies import ChatBody, CompletionBody
from distaff.serving.http.errors import InvalidBodyError, invalid_body
from distaff.serving.types import Kind, Request, SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]

# What openai-python 3.54 may send (completion_create_params.py of its types, and of types/chat), each with a value:
# True where it is honoured, False where it is refused.
COMPLETION_FIELDS: dict[str, tuple[Any, bool]] = {
    "best_of": (3, False),
    "echo": (True, True),
    "frequency_penalty": (0.5, True),
    "logit_bias": ({"5": -3}, True),
    "logprobs": (2, True),
    "max_tokens": (7, True),
    "model": ("m", True),
    "n": (2, True),
    "presence_penalty": (0.5, True),
    "prompt": ("x", True),
    "seed": (7, True),
    "stop": (["a", "b"], True),
    "stream": (True, True),
    "stream_options": ({"include_usage": True}, True),
    "suffix": ("end", False),
    "temperature": (0.5, True),
    "top_p": (0.5, True),
    "user": ("someone", True),
}
CHAT_FIELDS: dict[str, tuple[Any, bool]] = {
    "audio": ({"voice": "alloy", "format": "wav"}, False),
    "frequency_penalty": (0.5, True),
    "function_call": ("auto", False),
    "functions": ([{"name": "f"}], False),
    "logit_bias": ({"5": -3}, True),
    "logprobs": (True, True),
    "max_completion_tokens": (7, True),
    "max_tokens": (7, True),
    "messages": (MESSAGES, True),
    "metadata": ({"a": "b"}, False),
    "modalities": (["text", "audio"], False),
    "model": ("m", True),
    "moderation": ({}, False),
    "n": (2, True),
    "parallel_tool_calls": (True, False),
    "prediction": ({"type": "content", "content": "x"}, False),
    "presence_penalty": (0.5, True),
    "prompt_cache_key": ("k", False),
    "prompt_cache_options": ({}, False),
    "prompt_cache_retention": ("24h", False),
    "reasoning_effort": ("low", False),
    "response_format": ({"type": "json_object"}, False),
    "safety_identifier": ("someone", True),
    "seed": (7, True),
    "service_tier": ("priority", False),
    "stop": ("a", True),
    "store": (True, False),
    "stream": (True, True),
    "stream_options": ({"include_usage": True}, True),
    "temperature": (0.5, True),
    "tool_choice": ("auto", False),
    "tools": ([{"type": "function", "function": {"name": "f"}}], False),
    "top_logprobs": (3, True),
    "top_p": (0.5, True),
    "user": ("someone", True),
    "verbosity": ("low", False),
    "web_search_options": ({}, False),
}
CASES = [(CompletionBody, name, *case) for name, case in COMPLETION_FIELDS.items()]
CASES += [(ChatBody, name, *case) for name, case in CHAT_FIELDS.items()]


def parse(kind: type[CompletionBody | ChatBody], body: dict[str, Any]) -> CompletionBody | ChatBody:
    least = {"prompt": "x"} if kind is CompletionBody else {"messages": MESSAGES}
    try:
        return kind.model_validate_json(json.dumps({**least, **body}))
    except ValidationError as error:
        raise invalid_body(error) from None


def call(kind: type[CompletionBody | ChatBody], body: dict[str, Any]) -> Call:
    (only,) = parse(kind, body).calls()
    return only


@pytest.mark.parametrize(("kind", "name", "value", "honoured"), CASES)
def test_each_field_of_openais_is_honoured_or_refused_by_name(
    kind: type[CompletionBody | ChatBody], name: str, value: Any, honoured: bool
) -> None:
    assert name in kind.model_fields
    assert call(kind, {} if name in ("prompt", "messages") else {name: None}) == call(kind, {}), "null is left out"
    body = {name: value}
    if not honoured:
        with pytest.raises((InvalidParameterError, InvalidBodyError)) as refused:
            call(kind, body)
        assert refused.value.field.split(".")[0] == name
        assert (name in str(refused.value) and "supported" in str(refused.value)) or name == "best_of"
        return
    if name == "stream_options":
        body["stream"] = True
    if name == "top_logprobs":
        body["logprobs"] = True
    made = parse(kind, body)
    if name in ("stream", "stream_options", "user", "safety_identifier"):
        assert getattr(made, name) is not None  # of the response and the log, not of the call
    else:
        assert call(kind, body) != call(kind, {}) or name in ("prompt", "messages")


def test_only_known_fields_of_openais_are_listed() -> None:
    """What is neither OpenAI's nor a parameter of the engine is a field of a Call, or shapes the answer."""
    own = {*(parameter.name for parameter in PARAMETERS), "request_id", "return_token_ids"}
    own |= {"priority", "queue_timeout", "timeout", "cache_salt", "use_prefix_cache"}
    assert set(CompletionBody.model_fields) == COMPLETION_FIELDS.keys() | own
    templates = {"chat_template_kwargs", "add_generation_prompt"}
    assert set(ChatBody.model_fields) == CHAT_FIELDS.keys() | own | templates


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
@pytest.mark.parametrize("kind", [CompletionBody, ChatBody])
def test_every_sampling_parameter_reaches_the_call(kind: type[CompletionBody | ChatBody], parameter: Parameter) -> None:
    value = parameter.example
    body: dict[str, Any] = {parameter.name: value}
    if kind is ChatBody and parameter.name == "logprobs":
        body = {"logprobs": True, "top_logprobs": value}
    if parameter.name == "min_tokens":
        body["max_tokens"] = 128  # at least as many
    expected = SamplingParams(**{parameter.name: value})
    assert getattr(call(kind, body).params, parameter.name) == getattr(expected, parameter.name)
    name = "top_logprobs" if kind is ChatBody and parameter.name == "logprobs" else parameter.name
    for bad in parameter.refused:
        if parameter.name in ("max_tokens", "seed") and bad in (0, -1):
            continue  # these mean something else here
        if bad is None or bad == {"1": 1.0}:
            continue  # null leaves out; JSON has no other keys than texts
        fields = {"logprobs": True} if name == "top_logprobs" else {}
        bad = list(bad) if isinstance(bad, tuple) else bad
        with pytest.raises((InvalidParameterError, InvalidBodyError)) as refused:
            call(kind, {**body, **fields, name: bad})
        assert refused.value.field.split(".")[0] in (name, "max_completion_tokens")


def test_fields_of_the_call() -> None:
    fields = {"request_id": "mine", "priority": 3, "queue_timeout": 1.5, "timeout": 2, "cache_salt": "s"}
    made = call(CompletionBody, {**fields, "use_prefix_cache": False, "model": "m"})
    assert (made.id, made.priority, made.queue_timeout, made.timeout) == ("mine", 3, 1.5, 2)
    assert (made.cache_salt, made.use_prefix_cache, made.model) == ("s", False, "m")


def test_forms_of_a_prompt() -> None:
    for prompt, want in (
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ):
        calls = parse(CompletionBody, {"prompt": prompt, "request_id": "r"}).calls()
        assert [each.prompt for each in calls] == want
        assert [each.id for each in calls] == (["r"] if len(want) == 1 else ["r-0", "r-1"])
    with pytest.raises(InvalidParameterError, match="1 to 2048 with n 2"):
        parse(CompletionBody, {"prompt": ["a"] * 2049, "n": 2}).calls()
    for prompt in ([], [1, "a"], [["a"]], [[1], "a"], {"a": 1}, None, 5, True, [True]):
        with pytest.raises((InvalidParameterError, InvalidBodyError)) as refused:
            parse(CompletionBody, {"prompt": prompt}).calls()
        assert refused.value.field.split(".")[0] == "prompt"


def test_a_chat_for_the_template() -> None:
    messages = [
        {"role": "developer", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "name": "me"},
        {"role": "assistant", "content": "d", "tool_calls": [], "refusal": None, "audio": None},
    ]
    body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}
    made = call(ChatBody, body)
    assert made.prompt == Chat(
        (
            {"role": "system", "content": "a"},
            {"role": "user", "content": "b\nc", "name": "me"},
            {"role": "assistant", "content": "d"},
        ),
        {"enable_thinking": False, "add_generation_prompt": False},
    )
    for field, message in (
        ("messages.0.role", {"role": "tool", "content": "x"}),
        ("messages.0.content", {"role": "user", "content": None}),
        ("messages.0.content", {"role": "user"}),
        ("messages.0.content.0.type", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        ("messages.0.tool_calls", {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}),
        ("messages.0.weight", {"role": "assistant", "content": "x", "weight": 1}),
    ):
        with pytest.raises(InvalidBodyError) as refused:
            call(ChatBody, {"messages": [message]})
        assert field in (refused.value.field, refused.value.field.removesuffix(".image_url")) and field in str(
            refused.value
        )


def test_a_score_is_asked_for_by_echo_without_tokens() -> None:
    made = call(CompletionBody, {"echo": True, "max_tokens": 0, "logprobs": 3})
    assert made.kind is Kind.SCORE and made.params.prompt_logprobs == 3
    assert Request((1, 2), made.params, made.kind), "a request takes it"
    made = call(CompletionBody, {"echo": True, "max_tokens": 0, "logprobs": 3, "top_k": 5})
    with pytest.raises(UnsupportedError, match="top_k"):
        Request((1, 2), made.params, made.kind)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"temperature": float("nan")}, "temperature"),
        ({"timeout": float("inf")}, "timeout"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"n": True}, "n"),
        ({"temperature": "1"}, "temperature"),
        ({"unknown": 1}, "unknown"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
        ({"echo": True, "max_tokens": 0, "stream": True}, "stream"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 2, "logprobs": 0, "echo": True}, "prompt_logprobs"),
    ],
)
def test_contradictions_and_wrong_types_are_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidParameterError, InvalidBodyError)) as refused:
        call(CompletionBody, body)
    assert refused.value.field == field


def test_names_are_those_that_the_client_used() -> None:
    for body, field in (
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ):
        with pytest.raises(InvalidParameterError) as refused:
            call(ChatBody, body)
        assert refused.value.field == field and field in str(refused.value)


def test_a_long_list_is_given_up_at_its_first_wrong_item() -> None:
    for prompt in ([1.5] * 10_000, [[1], *[["a"]] * 10_000]):
        with pytest.raises(ValidationError) as refused:
            CompletionBody.model_validate_json(json.dumps({"prompt": prompt}))
        assert refused.value.error_count() <= 4, "one for each form of a prompt"


def test_messages_of_errors_do_not_repeat_the_prompt() -> None:
    with pytest.raises(InvalidBodyError) as refused:
        parse(ChatBody, {"messages": [{"role": "user", "content": {"secret": "prompt"}}]})
    assert "secret" not in str(refused.value)
