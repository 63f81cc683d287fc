"""The bars are what docs/kernels.md says, and hold where they say."""

import re
from pathlib import Path

import pytest

from distaff.backends.kernel_bars import Bar, kernel_bars

DECODE = {
    "batch": 64, "context": 4096, "num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, "queries": 1
}  # fmt: skip


def document() -> str:
    """The section of the bars, its line breaks taken out."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text()
    return " ".join(text.split("\n## The bars\n")[1].split("\n## ")[0].split())


def test_every_bar_is_in_the_document_in_its_order() -> None:
    place, text = 0, document()
    for bar in kernel_bars():
        found = text.find(bar.text, place)
        assert found >= 0, bar.text
        place = found + len(bar.text)


def test_every_bar_says_its_limit_and_generations() -> None:
    for bar in kernel_bars():
        numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", bar.text)]
        assert bar.limit in numbers or bar.figure in {"hot_loop_spills", "cache_copies", "vmem_share"}, bar
        named = set(re.findall(r"\bv5e\b|\bv6e\b|\btpu7x\b", bar.text))
        assert not named or named == set(bar.generations), bar


def test_no_limit_of_the_document_is_left_out() -> None:
    text = document()
    for bar in kernel_bars():
        text = text.replace(bar.text, "", 1)
    assert re.findall(r"\b\d+(?:\.\d+)?x\b", text) == []


@pytest.mark.parametrize(
    ("generation", "kv_dtype", "page", "limit", "strict"),
    [
        ("v5e", "bfloat16", 16, 0.6, False),
        ("v6e", "bfloat16", 256, 0.6, False),
        ("tpu7x", "bfloat16", 128, 0.6, False),
        ("tpu7x", "bfloat16", 16, 0.85, False),
        ("v6e", "float8_e4m3fn", 16, 0.7, False),
        ("tpu7x", "float8_e4m3fn", 16, 1.0, True),
        ("v5e", "int8", 128, 0.7, False),
        ("tpu7x", "int8", 128, 1.0, True),
        ("tpu7x", "int8", 16, 1.4, False),
        ("v4", "bfloat16", 16, None, False),
    ],
)
def test_the_ratio_of_decode(generation: str, kv_dtype: str, page: int, limit: float | None, strict: bool) -> None:
    shape = {**DECODE, "kv_dtype": kv_dtype, "page": page}
    found = [bar for bar in kernel_bars() if bar.figure == "ratio" and bar.applies("decode", generation, shape)]
    assert [(bar.limit, bar.strict) for bar in found] == ([] if limit is None else [(limit, strict)])


@pytest.mark.parametrize("more", [{"window": 128}, {"scales": "token"}])
def test_windows_and_scales_of_tokens_are_other_shapes_than_those_of_decode(more: dict[str, int | str]) -> None:
    shape = {**DECODE, "kv_dtype": "int8", "page": 128}
    decode = [bar for bar in kernel_bars() if bar.figure == "ratio" and bar.applies("decode", "tpu7x", shape)]
    assert len(decode) == 1 and not decode[0].applies("decode", "tpu7x", {**shape, **more})


def test_other_shapes_have_no_bar() -> None:
    shape = {**DECODE, "kv_dtype": "bfloat16", "page": 16, "num_kv_heads": 4}
    figures = {bar.figure for bar in kernel_bars() if bar.applies("decode", "v6e", shape)}
    assert figures == {"bundles", "compile_s", "vmem_share"}


def test_a_limit_may_be_reached_unless_it_must_stay_below() -> None:
    bar = Bar("", ("decode",), "ratio", 1.0)
    assert bar.met({"ratio": 1.0}) and not bar.met({"ratio": 1.01}) and not bar.met({"ratio": None})
    below = Bar("", ("decode",), "ratio", 1.0, strict=True)
    assert below.met({"ratio": 0.99}) and not below.met({"ratio": 1.0}) and not below.met({})
