"""`distaff generate`: flags, sources of the prompt, what goes to which stream. The model is a fake."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distaff.backends.select import CANDIDATES
from distaff.scripts.choice_writer import ChoiceWriter
from distaff.scripts.options import parse_size
from distaff.serving import SamplingParams
from distaff.serving.capabilities import PARAMETERS
from distaff.serving.engine_config import EngineConfig

if TYPE_CHECKING:
    from .conftest import FakeLLM

TIMES = ("load", "compile", "queue", "ttft", "prefill", "decode", "tokens_per_second")

type Run = Callable[..., int]
type Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"")


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_text_goes_to_stdout_and_progress_to_stderr(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "--model", "m", "--prompt", "abc") == 0
    out, err = capsys.readouterr()
    assert out == "cba\n"
    assert err == "Loading m\n"


def test_every_flag_reaches_its_place(distaff: Run, llm: "type[FakeLLM]") -> None:
    flags = (
        "--max-tokens 50 --min-tokens 4 --temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --typical-p 0.8 "
        "--seed 11 --repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty -0.3 --logit-bias 42=-1.5 "
        "--logit-bias 7=2 --bad-word damn --bad-word darn --allow-token-ids 7,42 --stop x --stop yz --stop-token-id 5 "
        "--stop-token-id 6 --ignore-eos --n 2 --logprobs 0 --prompt-logprobs 3 --echo --dtype bfloat16 "
        "--backend reference --offline --max-batch 4 --kv-memory 2GiB --context 512 --deterministic --no-prefix-cache"
    )
    assert distaff("generate", "-m", "m", "-p", "abc", *flags.split()) == 0
    engine = {"max_batch": 4, "kv_memory": 2**31, "context": 512, "deterministic": True, "prefix_cache": False}
    assert llm.made == [{"model": "m", "dtype": "bfloat16", "backend": "reference", "offline": True, **engine}]
    expected = SamplingParams(
        max_tokens=50,
        min_tokens=4,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        seed=11,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        logit_bias={42: -1.5, 7: 2.0},
        bad_words=("damn", "darn"),
        allowed_token_ids=(7, 42),
        stop=("x", "yz"),
        stop_token_ids=(5, 6),
        ignore_eos=True,
        n=2,
        logprobs=0,
        prompt_logprobs=3,
        echo=True,
    )
    assert llm.asked == [expected]
    assert all(getattr(expected, parameter.name) != parameter.default for parameter in PARAMETERS)  # none forgotten


def test_defaults_are_those_of_python(distaff: Run, llm: "type[FakeLLM]") -> None:
    assert distaff("generate", "-m", "m", "-p", "abc") == 0
    assert llm.made == [{"model": "m", "dtype": "float32", "backend": "auto", "offline": None, "max_batch": 1}]
    assert llm.asked == [SamplingParams()]


@pytest.mark.parametrize(("n", "max_batch"), [("5", 5), ("100", 32)])
def test_the_engine_is_as_large_as_the_answers_need(distaff: Run, llm: "type[FakeLLM]", n: str, max_batch: int) -> None:
    assert distaff("generate", "-m", "m", "-p", "abc", "--n", n) == 0
    assert llm.made[0]["max_batch"] == max_batch


def test_zero_is_a_value(distaff: Run, llm: "type[FakeLLM]") -> None:
    assert distaff("generate", "-m", "m", "-p", "abc", "--temperature", "0", "--seed", "0", "--logprobs", "0") == 0
    assert llm.asked == [SamplingParams(temperature=0, seed=0, logprobs=0)]


def test_a_host_that_follows_writes_nothing(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "follows", True)
    assert distaff("generate", "-m", "m", "-p", "abc", "--json") == 0
    assert capsys.readouterr().out == "" and llm.followed == 1 and not llm.asked


def test_the_context_may_be_the_only_limit(distaff: Run, llm: "type[FakeLLM]") -> None:
    assert distaff("generate", "-m", "m", "-p", "abc", "--max-tokens", "max") == 0
    assert llm.asked == [SamplingParams(max_tokens=None)]


def test_help_states_the_defaults(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split("\nOptions:")[1].split())
    for parameter in PARAMETERS:
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            option = shown.split(f" --{parameter.name.replace('_', '-')} ")[1].split(" --")[0]
            assert f"[default: {parameter.default}]" in option, option
    assert f"[default: {EngineConfig().max_batch}]" in shown.split(" --max-batch ")[1].split(" --")[0]
    names = shown.split(" --backend ")[1].split("What computes: ")[1].split(".")[0]
    assert names.replace(" or ", ", ").split(", ") == ["auto", *CANDIDATES]


def test_help_has_sections(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "--help") == 0
    shown = capsys.readouterr().out
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Options",
        "When it ends",
        "Which tokens are drawn",
        "What is made more or less likely",
        "What comes out",
        "How it runs",
        "Several hosts",
    ]
    assert "-h, --help" in shown.split("When it ends")[0]
    assert "--max-batch" in shown.split("How it runs")[1] and "--max-batch" not in shown.split("How it runs")[0]


def test_json_is_one_object_on_one_line(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "a\u2028\u00e9", "--json", "--seed", "3") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {
        "text": "\u00e9\u2028a",
        "token_ids": [0xE9, 0x2028, 0x61],
        "prompt_token_ids": [0x61, 0x2028, 0xE9],
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0, "total_tokens": 6},
        "timings": {**dict.fromkeys(TIMES, 0.0), "load": 1.0, "decode": 2.0, "tokens_per_second": 2.0},
        "seed": 3,
        "choices": [
            {
                "index": 0,
                "text": "\u00e9\u2028a",
                "token_ids": [0xE9, 0x2028, 0x61],
                "finish_reason": "length",
                "stopped_by": None,
                "logprobs": None,
            }
        ],
        "prompt_logprobs": None,
    }


def test_json_has_every_choice_and_all_logprobs(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "ab", "--json", "--n", "2", "--logprobs", "2") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert [choice["text"] for choice in answer["choices"]] == ["ba", "cb"] and answer["text"] == "ba"
    assert answer["choices"][1]["logprobs"][0]["top"][0] == {"token_id": 98, "logprob": -0.25}
    assert err == "Loading m\n"


def test_choices_are_written_one_below_the_other(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "abc", "--n", "3") == 0
    out, err = capsys.readouterr()
    assert out == "cba\ndcb\nedc\n"
    assert err == "Loading m\n[choice 1 of 3]\n[choice 2 of 3]\n[choice 3 of 3]\n"


def test_a_choice_is_shown_while_it_grows_and_those_behind_it_wait(capsys: Capture) -> None:
    writer = ChoiceWriter(3)
    shown = []
    for choice, text, ended in [
        (0, "a", False),
        (1, "x", False),
        (2, "p", True),
        (0, "b", True),
        (1, "y", False),
        (1, "", True),
    ]:
        writer.write(choice, text, ended=ended)
        shown.append(capsys.readouterr().out)
    writer.finish()
    assert shown == ["a", "", "", "b\nx", "y", "\np"] and capsys.readouterr().out == "\n"


def test_logprobs_are_a_table_on_stderr(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "ab", "--logprobs", "2", "--prompt-logprobs", "0") == 0
    out, err = capsys.readouterr()
    assert out == "ba\n"
    assert err.splitlines()[1:] == [
        "[prompt]",
        "token                  logprob   share   rank  most likely",
        "'b'                     0.0000  100.0%      0",
        "[choice 1]",
        "token                  logprob   share   rank  most likely",
        "'a'                    -0.5000   60.7%      2  'b' 77.9%  'a' 60.7%",
    ]


def test_without_a_tokenizer_the_table_has_token_ids(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "tokenizer", None)
    assert distaff("generate", "-m", "m", "-p", "ab", "--logprobs", "1") == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("97  ")


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("2GiB", 2**31), ("1.5k", 1500), ("7", 7), ("1 KiB", 1024), ("3TB", 3 * 10**12)],
)
def test_sizes_are_decimal_or_binary(text: str, size: int) -> None:
    assert parse_size("--kv-memory", text) == size


def test_chat_is_one_user_message(distaff: Run, llm: "type[FakeLLM]", capsys: Capture) -> None:
    assert distaff("generate", "-m", "m", "-p", "hi", "--chat") == 0
    assert distaff("generate", "-m", "m", "-p", "hi", "--chat", "--system", "be") == 0
    user = {"role": "user", "content": "hi"}
    assert llm.messages == [[user], [{"role": "system", "content": "be"}, user]]
    assert capsys.readouterr().out == "ih\nih|eb\n"


@pytest.mark.parametrize(
    ("data", "expected"), [(b"abc", "cba\n"), (b"abc\n", "cba\n"), (b"abc\r\n", "cba\n"), (b"abc\n\n", "\ncba\n")]
)
def test_prompt_from_stdin_and_file(
    distaff: Run,
    llm: "type[FakeLLM]",
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: bytes,
    expected: str,
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    assert distaff("generate", "-m", "m", "--prompt-file", str(file)) == 0
    assert capsys.readouterr().out == expected
    for arguments in ((), ("--prompt-file", "-")):
        pipe(monkeypatch, data)
        assert distaff("generate", "-m", "m", *arguments) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "a", "--system", "s"], "--system needs --chat"),
        (["-p", "a", "--prompt-file", "f"], "exclude each other"),
        (["-p", ""], "prompt is empty"),
        ([], "prompt is empty"),  # nothing piped in
        (["--prompt-file", "no-such-file"], "no-such-file: cannot be read (No such file or directory)"),
        (["-p", "a", "--temperature", "-1"], "temperature is -1.0, expected"),
        (["-p", "a", "--top-k", "-1"], "top_k is -1, expected"),
        (["-p", "a", "--top-p", "0"], "top_p is 0.0, expected"),
        (["-p", "a", "--min-p", "1.5"], "min_p is 1.5, expected"),
        (["-p", "a", "--max-tokens", "0"], "max_tokens is 0, expected"),
        (["-p", "a", "--seed", "-1"], "seed is -1, expected"),
        (["-p", "a", "--stop", ""], "stop is [''], expected"),
        (["-p", "a", "--temperature", "nan"], "temperature is nan, expected"),
        (["-p", "a", "--dtype", "float64"], "float64"),
        (["-p", "a", "--max-tokens", "many"], "--max-tokens is 'many', expected a whole number, or max"),
        (["-p", "a", "--min-tokens", "-1"], "min_tokens is -1, expected"),
        (["-p", "a", "--min-tokens", "200"], "min_tokens is 200, expected at most max_tokens (128)"),
        (["-p", "a", "--typical-p", "0"], "typical_p is 0.0, expected"),
        (["-p", "a", "--repetition-penalty", "0"], "repetition_penalty is 0.0, expected"),
        (["-p", "a", "--presence-penalty", "3"], "presence_penalty is 3.0, expected"),
        (["-p", "a", "--frequency-penalty", "nan"], "frequency_penalty is nan, expected"),
        (["-p", "a", "--logit-bias", "5"], "--logit-bias is '5', expected ID=X"),
        (["-p", "a", "--logit-bias", "a=1"], "--logit-bias is 'a=1', expected ID=X"),
        (["-p", "a", "--logit-bias", "5=200"], "logit_bias is 200.0, expected"),
        (["-p", "a", "--bad-word", ""], "bad_words is [''], expected"),
        (["-p", "a", "--allow-token-ids", ""], "--allow-token-ids is '', expected token ids"),
        (["-p", "a", "--allow-token-ids", "1,b"], "--allow-token-ids is 'b', expected token ids"),
        (["-p", "a", "--stop-token-id", "-1"], "stop_token_ids is -1, expected"),
        (["-p", "a", "--n", "0"], "n is 0, expected"),
        (["-p", "a", "--logprobs", "21"], "logprobs is 21, expected a whole number from 0 to 20"),
        (["-p", "a", "--prompt-logprobs", "-1"], "prompt_logprobs is -1, expected"),
        (["-p", "a", "--kv-memory", "much"], "--kv-memory is 'much', expected a size such as 512MB"),
        (["-p", "a", "--kv-memory", "0GB"], "--kv-memory is '0GB', expected"),
        (["-p", "a", "--colour"], "--colour"),
    ],
)
def test_wrong_use_is_refused_before_the_model_is_loaded(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, arguments: list[str], message: str
) -> None:
    assert distaff("generate", "-m", "m", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert llm.made == []


def test_the_model_must_be_named(distaff: Run, capsys: Capture) -> None:
    assert distaff("generate", "-p", "a") == 2
    assert "--model" in capsys.readouterr().err


def test_a_prompt_that_is_no_utf8_is_refused(
    distaff: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe(monkeypatch, b"caf\xe9")
    assert distaff("generate", "-m", "m") == 2
    assert capsys.readouterr().err.startswith("error: stdin: byte 3 is 0xe9, not UTF-8")


def test_a_terminal_gets_no_control_characters(
    distaff: Run, llm: "type[FakeLLM]", capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert distaff("generate", "-m", "m", "-p", "m13[\x1ba\t") == 0
    assert capsys.readouterr().out == "\ta\x1b[31m\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert distaff("generate", "-m", "m", "-p", "m13[\x1ba\t") == 0
    assert capsys.readouterr().out == "\ta\ufffd[31m\n"
