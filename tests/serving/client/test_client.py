"""The blocking client, against a server that says what a test wrote down."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.serving.client import (
    Admitted,
    AuthenticationError,
    Choice,
    Client,
    DeadlineError,
    Delta,
    DuplicateRequestError,
    Finished,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
    UnknownNameError,
    UnsupportedCallError,
)
from distaff.serving.client.requests import SAMPLING
from distaff.serving.results import Usage
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2

from .scripted import Refusal, Scripted, admitted, beside, delta, finished, inference_pb2

ANSWER = [admitted(), delta("Hel", 1), delta("lo", 2, 3), finished(stop_string="x", reason="STOP_STRING", tokens=3)]
QUICK = RetryPolicy(first=0.01, longest=1.0)


def asked[T](servicer: Scripted, work: Callable[[Client], T], **options: Any) -> T:
    def whole(port: int) -> T:
        with Client(f"127.0.0.1:{port}", **{"retry": QUICK, **options}) as client:
            return work(client)

    return beside(servicer, whole)


def test_importing_it_imports_neither_jax_nor_flax() -> None:
    code = (
        "import sys\nfrom distaff.serving import AsyncClient, Client\nimport distaff.serving.load.grpc_transport\n"
        "import distaff.serving.route.native, distaff.serving.load.http_transport\n"
        "Client('127.0.0.1:1').close()\n"
        "print([name for name in ('jax', 'jaxlib', 'flax', 'tokenizers', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_events_texts_and_the_result() -> None:
    servicer = Scripted(ANSWER)

    def work(client: Client) -> None:
        with client.generate_stream("p") as stream:
            events = list(stream)
            result = stream.result()
        assert isinstance(events[0], Admitted) and events[0].params["seed"] == 7
        assert events[0].params == {"seed": 7, "stop": ("x",), "logit_bias": {3: 1.5}, "max_tokens": 4}
        assert events[1:3] == [Delta(0, "Hel", (1,)), Delta(0, "lo", (2, 3))]
        assert isinstance(events[3], Finished) and (events[3].reason, events[3].stopped_by) == ("stop_string", "x")
        assert list(client.generate_stream("p").text()) == ["Hel", "lo"]
        assert (result.text, result.token_ids, result.finish_reason) == ("Hello", (1, 2, 3), "stop_string")
        assert (result.usage, result.seed, result.id) == (Usage(5, 3, 1), 7, "r")
        assert result.timings.queue == 0.25 and result.timings.total == 2.0
        assert json.loads(json.dumps(result.to_dict()))["choices"][0]["text"] == "Hello"

    asked(servicer, work)


def test_choices_come_mixed() -> None:
    script = [
        admitted(), delta("b", 9, index=1), delta("a", 1), delta("B", 8, index=1),
        finished("EOS", 1, stop_token_id=5), finished("LENGTH", 2, index=1),
    ]  # fmt: skip
    result = asked(Scripted(script), lambda client: client.generate_stream("p", n=2).result())
    assert result.choices == (Choice(0, "a", (1,), "eos", 5), Choice(1, "bB", (9, 8), "length"))
    assert asked(Scripted(script), lambda client: list(client.generate_stream("p").text(1))) == ["b", "B"]


def test_every_option_reaches_its_field() -> None:
    sampling: dict[str, Any] = {
        "max_tokens": None, "min_tokens": 1, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1,
        "typical_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
        "logit_bias": {5: -1.0}, "bad_words": ["a"], "allowed_token_ids": [], "stop": "end", "stop_token_ids": (4, 5),
        "ignore_eos": True, "n": 2, "seed": 2**64 - 1, "logprobs": 0, "prompt_logprobs": 2, "echo": False,
    }  # fmt: skip
    assert sampling.keys() == set(SAMPLING)
    rest: dict[str, Any] = {
        "request_id": "r", "model": "m", "priority": -3, "queue_timeout": 1.5, "total_timeout": 2.5,
        "cache_salt": "s", "use_prefix_cache": False, "omit_text": True, "omit_token_ids": True, "chunk_tokens": 4,
    }  # fmt: skip
    messages = [{"role": "user", "content": "hi", "name": "x"}]
    template: dict[str, Any] = {
        "tools": [{"a": 1}], "template_variables": {"think": False}, "add_generation_prompt": False
    }  # fmt: skip
    servicer = Scripted(ANSWER)
    asked(servicer, lambda client: client.generate_stream(messages, **sampling, **rest, **template).result())
    got = servicer.requests[0]
    params = got.sampling
    assert params.max_tokens == 0 and params.HasField("max_tokens") and params.HasField("temperature")
    assert params.HasField("allowed_token_ids") and list(params.stop) == ["end"] and params.seed == 2**64 - 1
    assert params.HasField("echo") and params.HasField("logprobs") and dict(params.logit_bias) == {5: -1.0}
    stated = {name for name in SAMPLING if name not in ("bad_words", "stop", "stop_token_ids", "logit_bias")}
    assert all(params.HasField(name) for name in stated)
    assert list(params.stop_token_ids) == [4, 5] and list(params.bad_words) == ["a"]
    assert (got.request_id, got.model, got.priority) == ("r", "m", -3)
    assert (got.queue_timeout_seconds, got.total_timeout_seconds) == (1.5, 2.5)
    assert (got.cache.salt, got.cache.bypass) == ("s", True)
    assert (got.output.omit_text, got.output.omit_token_ids, got.output.chunk_tokens) == (True, True, 4)
    message = got.chat.messages[0]
    assert (message.role, message.content, json.loads(message.fields_json)) == ("user", "hi", {"name": "x"})
    assert json.loads(got.chat.tools_json) == [{"a": 1}]
    assert json.loads(got.chat.template_variables_json) == {"think": False}
    assert got.chat.HasField("add_generation_prompt") and not got.chat.add_generation_prompt


def test_what_is_left_out_is_not_stated() -> None:
    servicer = Scripted(ANSWER)
    asked(servicer, lambda client: (client.generate_stream([1, 2]).result(), client.generate_stream("t").result()))
    ids, text = servicer.requests
    assert list(ids.token_ids.ids) == [1, 2] and ids.WhichOneof("prompt") == "token_ids" and text.text == "t"
    assert not ids.HasField("sampling") and not ids.HasField("cache") and not ids.HasField("output")


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("p", {"temprature": 1}, "unknown option temprature"),
        ("p", {"top_k": 2**31}, "top_k"),
        ("p", {"top_k": "many"}, "top_k"),
        ("p", {"seed": -1}, "seed"),
        ("p", {"logit_bias": 3}, "logit_bias"),
        ([2**31], {}, "prompt"),
        ([{"content": "x"}], {}, "messages\\[0\\]"),
        ([{"role": "user", "content": 5}], {}, "messages\\[0\\].content"),
        ([{"role": "user", "content": "x"}], {"tools": {1j}}, "tools"),
    ],
)
def test_what_the_protocol_cannot_carry_is_refused_before_it_is_sent(
    prompt: Any, options: dict[str, Any], message: str
) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises((UsageError, InvalidParameterError), match=message):
        client.generate(prompt, **options)


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal("INVALID_ARGUMENT", field="top_p"), InvalidRequestError),
        (Refusal("NOT_FOUND", field="model"), UnknownNameError),
        (Refusal("UNAUTHENTICATED"), AuthenticationError),
        (Refusal("UNIMPLEMENTED"), UnsupportedCallError),
        (Refusal("RESOURCE_EXHAUSTED"), OverloadedError),
        (Refusal("ALREADY_EXISTS", field="request_id"), DuplicateRequestError),
    ],
)
def test_errors_have_types_and_name_the_field(refusal: Refusal, kind: type[ServerError]) -> None:
    servicer = Scripted([refusal])
    with pytest.raises(kind, match=refusal.code.name) as raised:
        asked(servicer, lambda client: client.generate("p"))
    assert (raised.value.code, raised.value.field) == (refusal.code.name, refusal.field or None)
    assert len(servicer.requests) == 1, "it was tried again in vain"


@pytest.mark.parametrize(
    "refusal", [Refusal("UNAVAILABLE"), Refusal("RESOURCE_EXHAUSTED", retry_after=0.05), Refusal("ABORTED")]
)
def test_a_call_that_brought_nothing_is_tried_again(refusal: Refusal) -> None:
    unary = generation_pb2.GenerateResult(choices=[generation_pb2.Choice(text="x")])
    began = time.monotonic()
    servicer = Scripted([refusal], [refusal], [unary])
    assert asked(servicer, lambda client: client.generate("p")).text == "x" and len(servicer.requests) == 3
    assert refusal.retry_after is None or time.monotonic() - began >= 2 * refusal.retry_after
    servicer = Scripted([refusal], ANSWER)
    assert asked(servicer, lambda client: client.generate_stream("p").result()).text == "Hello"
    servicer = Scripted([refusal])
    with pytest.raises((UnavailableError, OverloadedError)):
        asked(servicer, lambda client: client.generate("p"), retry=RetryPolicy(attempts=3, first=0.01))
    assert len(servicer.requests) == 3


def test_a_name_that_an_own_lost_try_still_has_is_waited_for() -> None:
    unary = generation_pb2.GenerateResult(choices=[generation_pb2.Choice(text="x")])
    servicer = Scripted([Refusal("UNAVAILABLE")], [Refusal("ALREADY_EXISTS")], [unary])
    assert asked(servicer, lambda client: client.generate("p", request_id="r")).text == "x"
    servicer = Scripted([Refusal("UNAVAILABLE", retry_after=0.01)], [Refusal("ALREADY_EXISTS")])
    with pytest.raises(DuplicateRequestError):  # that server has not taken it
        asked(servicer, lambda client: client.generate("p", request_id="r"))


def test_a_call_that_has_begun_is_not() -> None:
    def work(client: Client) -> list[Any]:
        events = []
        with pytest.raises(UnavailableError) as raised:
            events.extend(client.generate_stream("p"))
        return [raised.value.retry_after, events]

    servicer = Scripted([admitted(), Refusal("UNAVAILABLE", retry_after=0.01)], ANSWER)
    assert asked(servicer, work)[0] == 0.01 and len(servicer.requests) == 1
    batch = [inference_pb2.BatchItemEvent(key="0", event=admitted()), Refusal("UNAVAILABLE")]
    servicer = Scripted(batch, batch)
    with pytest.raises(UnavailableError):
        asked(servicer, lambda client: client.batch(["p"]))
    assert len(servicer.requests) == 1


def test_the_deadline_holds_for_all_tries_together() -> None:
    servicer = Scripted([Refusal("UNAVAILABLE")])
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        asked(servicer, lambda client: client.generate("p", timeout=0.5), retry=RetryPolicy(attempts=99, first=0.1))
    assert time.monotonic() - began < 5 and len(servicer.requests) < 20
    assert all(left is not None and left < 0.6 for left in servicer.times)
    with pytest.raises(DeadlineError):
        asked(Scripted([10.0]), lambda client: client.generate("p"), timeout=0.2)


def test_nobody_there_is_a_message_that_helps() -> None:
    client = Client("127.0.0.1:1", retry=RetryPolicy(attempts=1))
    with client, pytest.raises(UnavailableError, match="is a server running there"):
        client.generate("p")


def test_leaving_a_stream_cancels_the_request() -> None:
    servicer = Scripted([admitted(), delta("a", 1), 30.0])

    def work(client: Client) -> None:
        with client.generate_stream("p") as stream:
            assert next(stream.text()) == "a"
        with pytest.raises(StopIteration):
            next(stream)
        _until(lambda: servicer.cancelled == 1)

    asked(servicer, work)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_leaving_a_batch_cancels_it() -> None:
    servicer = Scripted([inference_pb2.BatchItemEvent(key="a", event=admitted()), 30.0])

    def work(client: Client) -> None:
        with client.batch_stream([("a", "p", {})]) as stream:
            assert next(stream)[0] == "a"
        _until(lambda: servicer.cancelled == 1)

    asked(servicer, work)


def test_closing_from_another_thread_ends_the_iteration() -> None:
    def work(client: Client) -> list[str]:
        stream = client.generate_stream("p")
        threading.Timer(0.2, stream.close).start()
        return list(stream.text())

    assert asked(Scripted([admitted(), delta("a", 1), 30.0]), work) == ["a"]


def test_a_stream_that_failed_stays_at_its_end() -> None:
    servicer = Scripted([Refusal("INVALID_ARGUMENT")])

    def work(client: Client) -> list[Any]:
        stream = client.generate_stream("p")
        with pytest.raises(InvalidRequestError):
            next(stream)
        return list(stream)

    assert asked(servicer, work) == [] and len(servicer.requests) == 1


def test_a_batch_keeps_its_order_and_its_failures_apart() -> None:
    item = inference_pb2.BatchItemEvent
    error = inference_pb2.ItemError(code="INVALID_ARGUMENT", message="too long", field="prompt")
    script = [
        item(key="2", event=admitted()), item(key="1", error=error), item(key="0", event=admitted()),
        item(key="2", event=delta("two", 2)), item(key="0", event=delta("zero", 1)),
        item(key="0", event=finished()), item(key="2", event=finished()),
    ]  # fmt: skip
    servicer = Scripted(script)
    zero, one, two = asked(servicer, lambda client: client.batch(["a", [1], "c"], max_tokens=3))
    assert not isinstance(zero, ServerError) and not isinstance(two, ServerError)
    assert (zero.text, two.text) == ("zero", "two")
    assert isinstance(one, InvalidRequestError) and one.field == "prompt"
    items = servicer.requests[0].items
    assert [each.request.sampling.max_tokens for each in items] == [3] * 3 and list(items[1].request.token_ids.ids) == [
        1
    ]


def test_scores_embeddings_and_cancelling() -> None:
    logprob = generation_pb2.TokenLogprob(
        token_id=4, logprob=-0.5, rank=2, top=[generation_pb2.TopLogprob(token_id=9, logprob=-0.25)]
    )
    score = inference_pb2.ScoreResponse(token_ids=[3, 4], logprobs=[logprob], total=-0.5, perplexity=1.5)
    got = asked(Scripted([score]), lambda client: client.score("p", num_top=1))
    assert (got.token_ids, got.total, got.perplexity) == ((3, 4), -0.5, 1.5)
    assert (got.logprobs[0].rank, got.logprobs[0].top) == (2, ((9, -0.25),))
    servicer = Scripted([inference_pb2.EmbedResponse(embedding=[0.5, -1.0], token_ids=[3])])
    assert asked(servicer, lambda client: client.embed("p", pooling="last")).vector == (0.5, -1.0)
    assert servicer.requests[0].pooling == inference_pb2.POOLING_LAST
    states = [inference_pb2.CANCEL_STATE_CANCELLED, inference_pb2.CANCEL_STATE_UNKNOWN]
    servicer = Scripted([inference_pb2.CancelResponse(states=states)])
    assert asked(servicer, lambda client: client.cancel("a", "b")) == {"a": True, "b": False}


def test_a_token_is_sent_and_not_shown() -> None:
    servicer = Scripted(ANSWER)
    asked(servicer, lambda client: client.generate_stream("p").result(), token="s3cret")
    assert servicer.metadata[0]["authorization"] == "Bearer s3cret"
    with Client("127.0.0.1:1", token="s3cret") as client:
        assert "s3cret" not in repr(client.target)
