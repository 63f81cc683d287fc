"""`distaff chat`: one answer, a talk in the terminal, what is kept of it; the server is scripted."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distaff.scripts.chat_terminal import Terminal
from distaff.serving.client import Client, RetryPolicy
from distaff.serving.client.conversation import Conversation

from ..serving.client.scripted import Refusal, Scripted, admitted, beside, delta, finished

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
ANSWER = [admitted(), delta("Hel", 1), delta("lo", 2), finished("EOS")]


def ran(distaff: Run, servicer: Scripted, *arguments: str) -> int:
    return beside(servicer, lambda port: distaff("chat", "--target", f"127.0.0.1:{port}", *arguments))


def asked(servicer: Scripted) -> list[list[tuple[str, str]]]:
    """The messages of each request."""
    return [[(each.role, each.content) for each in request.chat.messages] for request in servicer.requests]


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_one_answer(distaff: Run, capsys: Capture) -> None:
    servicer = Scripted(ANSWER)
    assert ran(distaff, servicer, "Why", "so?", "--system", "Be brief.", "--temperature", "0", "--seed", "3") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Hello\n", "")
    assert asked(servicer) == [[("system", "Be brief."), ("user", "Why so?")]]
    sampling = servicer.requests[0].sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0, 3, 0) and sampling.HasField("max_tokens")


def test_what_is_piped_in(distaff: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    servicer = Scripted(ANSWER)
    pipe(monkeypatch, "a text\n")
    assert ran(distaff, servicer, "Describe:", "-") == 0
    pipe(monkeypatch, "alone\n")
    assert ran(distaff, servicer) == 0
    assert asked(servicer) == [[("user", "Describe: \na text")], [("user", "alone")]]


def test_json_and_a_conversation_that_goes_on(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    servicer, file = Scripted(ANSWER), tmp_path / "talk.json"
    assert ran(distaff, servicer, "one", "--system", "s", "--save", str(file), "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["text"], value["finish_reason"], value["seed"]) == ("Hello", "eos", 7)
    assert ran(distaff, servicer, "two", "--load", str(file), "--save", str(file)) == 0
    saved = json.loads(file.read_text())
    assert [each["content"] for each in saved] == ["s", "one", "Hello", "two", "Hello"]
    assert [content for _, content in asked(servicer)[1]] == ["s", "one", "Hello", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no message"),
        (["hi", "--load", "/nowhere"], "/nowhere: is no conversation"),
        (["hi", "--target", "x"], "HOST:PORT"),
    ],
)
def test_wrong_use_is_one_message(
    distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    pipe(monkeypatch, "")
    assert distaff("chat", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_refusal_is_one_message(distaff: Run, capsys: Capture) -> None:
    assert ran(distaff, Scripted([Refusal("INVALID_ARGUMENT", field="top_p")]), "hi") == 2
    assert capsys.readouterr().err == "error: the server says INVALID_ARGUMENT\n"


def talked(servicer: Scripted, *lines: str | type[BaseException]) -> Conversation:
    """Types the lines in a terminal; an exception is what a key does."""
    given: Iterator[Any] = iter(lines)

    def read(_: str) -> str:
        line = next(given, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    def work(port: int) -> Conversation:
        with Client(f"127.0.0.1:{port}", retry=RetryPolicy(attempts=1)) as client:
            conversation = Conversation(client)
            Terminal(conversation, "fake", "here", read=read).run()
            return conversation

    return beside(servicer, work)


def test_a_talk(capsys: Capture) -> None:
    servicer = Scripted(ANSWER)
    conversation = talked(servicer, "one", "", "two \\", "more", "/quit", "three")
    assert [each["content"] for each in conversation.turns] == ["one", "Hello", "two \nmore", "Hello"]
    assert asked(servicer)[1] == [("user", "one"), ("assistant", "Hello"), ("user", "two \nmore")]
    out, err = capsys.readouterr()
    assert err.startswith("fake at here") and out == "Hello\nHello\n"
    assert err.count("[5 (1 cached) + 2 tokens; first token after 0.00 s]") == 2


def test_commands(tmp_path: Path, capsys: Capture) -> None:
    servicer, file = Scripted(ANSWER), tmp_path / "talk.json"
    conversation = talked(
        servicer,
        *("one", "/system Be brief.", "two", "/set top_k=3", "/set ignore_eos=true", "/retry", f"/save {file}"),
        *("/reset", "three", f"/load {file}", "/set top_k=", "/retry", "/nothing", "/retry now"),
    )  # fmt: skip
    system = ("system", "Be brief.")
    assert asked(servicer) == [
        [("user", "one")],
        [system, ("user", "two")],
        [system, ("user", "two")],
        [system, ("user", "three")],
        [system, ("user", "two")],
        [system, ("user", "two")],
    ]
    assert [each.sampling.top_k for each in servicer.requests] == [0, 0, 3, 3, 0, 0]
    assert servicer.requests[2].sampling.ignore_eos and conversation.sampling == {"ignore_eos": True}
    assert "there is no /nothing" in capsys.readouterr().err


def test_an_error_ends_nothing(capsys: Capture) -> None:
    servicer = Scripted([Refusal("UNAVAILABLE")], [admitted(), delta("Hal", 1), Refusal("INTERNAL")], ANSWER)
    conversation = talked(servicer, "/retry", "/save", "/set x", "one", "two", "three")
    assert [each["content"] for each in conversation.turns] == ["two", "Hal", "three", "Hello"]
    err = capsys.readouterr().err
    assert err.count("error: ") == 5 and "nothing was asked yet" in err


def test_an_answer_is_stopped_and_kept_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(self: Any, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distaff.scripts.chat_terminal.TextStream.write", interrupted)
    servicer = Scripted([admitted(), delta("Hal", 1), 5.0], ANSWER)
    conversation = talked(servicer, "one", KeyboardInterrupt)
    assert [each["content"] for each in conversation.turns] == ["one", "Hal"]
    assert "[stopped]" in capsys.readouterr().err


def test_a_retry_that_brings_nothing_loses_nothing(capsys: Capture) -> None:
    servicer = Scripted(ANSWER, [Refusal("UNAVAILABLE")], [admitted(), delta("Bye", 1), finished("EOS")])
    conversation = talked(servicer, "one", "/retry", "/retry")
    assert [each["content"] for each in conversation.turns] == ["one", "Bye"]
    assert len({tuple(messages) for messages in asked(servicer)}) == 1


def test_a_parameter_that_there_is_not_leaves_the_conversation_as_it_was(capsys: Capture) -> None:
    conversation = talked(Scripted(ANSWER), "/set colour=red", "one", "/set colour=", "two")
    assert [each["content"] for each in conversation.turns] == ["two", "Hello"]
    assert "unknown option colour" in capsys.readouterr().err
