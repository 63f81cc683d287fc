"""`distaff bench serve`: loads reach a server, and what comes is told; the server is scripted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ..serving.client.scripted import Refusal, Scripted, admitted, beside, delta, finished

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]
ANSWER = [admitted(), delta("a", 1), 0.01, delta("b", 2), finished(tokens=2)]
SMALL = ("--requests", "6", "--prompt-len", "3", "--output-len", "2", "--warm-up", "1")


def ran(distaff: Run, servicer: Scripted, *arguments: str) -> int:
    return beside(servicer, lambda port: distaff("bench", "serve", "--target", f"127.0.0.1:{port}", *arguments))


def test_a_closed_and_an_open_loop(distaff: Run, capsys: Capture) -> None:
    servicer = Scripted(ANSWER)
    assert ran(distaff, servicer, *SMALL, "--concurrency", "2", "--goodput", "ttft:60000", "--json") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    value = json.loads(out)
    assert (value["loop"], value["protocol"], value["model"], value["requests"]) == ("closed", "grpc", "fake", 6)
    assert value["concurrency"]["max"] == 2 and value["goodput"]["share"] == 1.0 and value["output_tokens"] == 12
    assert len(servicer.requests) == 7 and {len(each.token_ids.ids) for each in servicer.requests} == {3}
    assert value["generator"]["cpu_s"] > 0 and value["connections"] == 1
    assert ran(distaff, servicer, *SMALL, "--rate", "100") == 0
    table = capsys.readouterr().out
    for word in ("fake at 127.0.0.1", "TTFT", "output tokens/s", "sent late", "the generator itself"):
        assert word in table


def test_a_chat_over_several_connections(distaff: Run, capsys: Capture) -> None:
    servicer = Scripted(ANSWER)
    options = ("--chat", "--connections", "3", "--concurrency", "1", "--shared-prefix", "4")
    assert ran(distaff, servicer, *SMALL, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["chat"] is True
    texts = [request.chat.messages[0].content.split() for request in servicer.requests[1:]]
    assert {len(text) for text in texts} == {7} and len({tuple(text[:4]) for text in texts}) == 1
    assert len({tuple(text) for text in texts}) == 6 and len(set(servicer.peers)) == 3


def test_a_generator_without_time_is_found_out(distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distaff.serving.load.overhead.BUSY_SHARE", 0.0)
    assert ran(distaff, Scripted(ANSWER), *SMALL, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["generator"]["limits"] is True
    assert "the load generator took" in err and "times may be its own" in err


def test_a_trace(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 0.2, "prompt": "text", "max_tokens": 3}\n{"at": 0, "prompt_len": 4, "output_len": 5}\n')
    servicer = Scripted(ANSWER)
    assert ran(distaff, servicer, "--trace", str(trace), "--warm-up", "0", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["loop"] == "open" and value["duration_s"] >= 0.2
    assert [each.sampling.max_tokens for each in servicer.requests] == [5, 3] and servicer.requests[1].text == "text"


@pytest.mark.slow
def test_the_knee(distaff: Run, capsys: Capture) -> None:
    options = ("--sweep", "50:100", "--seconds", "0.2", "--goodput", "ttft:60000", "--warm-up", "0", *SMALL[2:6])
    servicer = Scripted(ANSWER)
    assert ran(distaff, servicer, *options, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["knee"], value["reached_most"], value["limits"]["ttft_ms"]) == (100, True, 60000)
    assert [(point["rate"], point["requests"], point["kept"]) for point in value["points"]] == [
        (50, 16, True),
        (100, 20, True),
    ]
    prompts = {tuple(each.token_ids.ids) for each in servicer.requests}
    assert len(prompts) == 36, "a rate found the prompts of another one computed"
    assert ran(distaff, Scripted(ANSWER), *options) == 0
    assert "knee: 100 requests/s (90% of the requests within ttft 60000 ms; the highest rate" in capsys.readouterr().out


def test_failures_are_shown_and_a_server_that_answers_nothing_is_a_failure(distaff: Run, capsys: Capture) -> None:
    refused = [Refusal("RESOURCE_EXHAUSTED")]
    assert ran(distaff, Scripted(ANSWER, refused, ANSWER), *SMALL) == 0
    assert "1 RESOURCE_EXHAUSTED" in capsys.readouterr().out
    assert ran(distaff, Scripted(refused), *SMALL) == 1
    assert "answered no request of the warm-up: RESOURCE_EXHAUSTED" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures(distaff: Run, capsys: Capture, tmp_path: Path) -> None:
    assert ran(distaff, Scripted(ANSWER), *SMALL, "--plot", str(tmp_path / "run")) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.png", "run.html"}
    assert f"wrote {tmp_path / 'run.png'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "2", "--rate", "3"], "give one of them"),
        (["--sweep", "1:4", "--rate", "3"], "--sweep finds the rate"),
        (["--sweep", "4:1"], "LOW:HIGH in requests a second"),
        (["--rate", "1", "--arrivals", "uniform"], "gamma:SHAPE"),
        (["--prompt-len", "x"], "LOW:HIGH"),
        (["--goodput", "itl:3"], "ttft:MS"),
        (["--token-file", "/nowhere/token"], "cannot be read"),
        (["--arrivals", "even"], "--arrivals has no effect without --rate"),
        (["--drain", "0"], "--drain has no effect in a closed loop"),
        (["--trace", "x", "--rate", "1", "--requests", "3"], "--requests has no effect with --trace"),
        (["--sweep", "1:4", "--requests", "3"], "--requests has no effect with --sweep"),
        (["--share", "0.5"], "--share has no effect without --sweep"),
        (["--chat", "--vocab-size", "9"], "--vocab-size has no effect with --chat"),
        (["--target", "http://127.0.0.1:1", "--connections", "2"], "--connections has no effect over HTTP"),
        (["--target", "nowhere"], "HOST:PORT"),
    ],
)
def test_wrong_use_is_one_message(distaff: Run, capsys: Capture, arguments: list[str], message: str) -> None:
    assert distaff("bench", "serve", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_nobody_there(distaff: Run, capsys: Capture) -> None:
    assert distaff("bench", "serve", "--target", "127.0.0.1:1") == 1
    assert "is a server running there" in capsys.readouterr().err
