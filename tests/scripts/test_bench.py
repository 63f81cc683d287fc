"""`distaff bench`: what it asks of the engine and what it prints, and a real run of a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distaff.serving import limits
from distaff.serving.limits import MachineLimits

TINY = ("--requests", "3", "--prompt-len", "4:12", "--output-len", "2:5", "--warm-up", "1", "--dtype", "float32")
ENGINE = ("--max-batch", "4", "--context", "64", "--kv-memory", "1MB")


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "measure_limits", lambda backend, dtype: MachineLimits(1e10, 1e11))


@pytest.mark.slow
def test_a_run_of_a_tiny_model(
    distaff: Callable[..., int], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("bench", "offline", "--model", str(tiny_model), *TINY, *ENGINE)
    assert distaff(*command, "--policy", "all", "--rounds", "1", "--goodput", "ttft:60000,tpot:60000", "--json") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    value = json.loads(out)
    assert [each["policy"] for each in value["policies"]] == ["continuous", "dynamic", "static"]
    for each in value["policies"]:
        assert each["requests"] == 3 and each["failed"] == 0
        assert 12 <= each["prompt_tokens"] <= 36 and 6 <= each["output_tokens"] <= 15
        assert each["output_tokens_per_s"] == pytest.approx(each["output_tokens"] / each["elapsed_s"])
        assert each["goodput"]["share"] == 1.0
        assert each["prefill"]["prompt_tokens"] == each["prompt_tokens"]
        assert each["prefill"]["tokens"] + each["decode"]["tokens"] >= each["prompt_tokens"] + each["output_tokens"] - 3
        assert each["unexpected_compiles"] == 0 and each["compiles"] == 0
        assert 0 < each["batch_occupancy"] <= 1 and 0 <= each["padding_waste"] < 1
        assert each["ttft_ms"]["p50"] > 0
    same = {key: value[key] for key in value["policies"][0]}
    assert same == value["policies"][0]


@pytest.mark.slow
def test_its_table_says_what_was_measured(
    distaff: Callable[..., int], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("bench", "offline", "--model", str(tiny_model), *TINY, *ENGINE)
    assert distaff(*command, "--rounds", "2", "--sampling", "heavy") == 0
    table = capsys.readouterr().out
    for word in (
        "output tokens/s",
        "steps of decode",
        "bound by",
        "e2el p50",
        "median of 2 rounds",
        "GFLOP/s",
        "heavy",
    ):
        assert word in table


@pytest.mark.slow
def test_a_shared_prefix_is_computed_once_a_round(
    distaff: Callable[..., int], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--requests", "6", "--prompt-len", "2:2", "--output-len", "2:2", "--shared-prefix", "48")
    options = ("--max-batch", "2", "--context", "64", "--dtype", "float32", "--rounds", "2", "--warm-up", "0")
    assert distaff("bench", "offline", "--model", str(tiny_model), *sizes, *options, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["prompt_tokens"] == 6 * 50
    assert value["prefix_hit_rate"] > 0.3
    assert value["prefill"]["prompt_tokens"] < 6 * 50


@pytest.mark.slow
def test_a_file_of_texts_and_token_ids(
    distaff: Callable[..., int], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "Hello", "max_tokens": 3}\n{"prompt": [5, 6, 7], "max_tokens": 2}\n')
    command = ("bench", "offline", "--model", str(tiny_model), *ENGINE, "--rounds", "1", "--dtype", "float32")
    assert distaff(*command, "--file", str(file), "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["requests"], value["prompt_tokens"], value["output_tokens"]) == (2, 8, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-len", "32-384"], "LOW:HIGH"),
        (["--output-len", "9:3"], "1 <= LOW <= HIGH"),
        (["--goodput", "ttft"], "ttft:MS,tpot:MS"),
        (["--kv-memory", "much"], "512MB or 2GiB"),
        (["--requests", "0"], "--requests"),
        (["--file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--file", "x", "--requests", "3"], "--requests has no effect with --file"),
        (["--file", "x", "--seed", "0"], "--seed has no effect with --file"),
        (["--batch-timeout", "1"], "--batch-timeout has no effect without --policy dynamic"),
        (["--policy", "fifo"], "fifo"),
    ],
)
def test_wrong_use_is_one_message(
    distaff: Callable[..., int],
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert distaff("bench", "offline", "--model", str(tiny_model), *ENGINE, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err
