"""Incremental decoding: nothing is taken back, nothing is half a code point, nothing is lost."""

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from distaff.models.detokenizer import Detokenizer, Spelling
from distaff.models.errors import TokenizerError
from distaff.models.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden_tokenizers"
HARD: list[str] = runpy.run_path(str(GOLDEN / "texts.py"))["HARD"]
BYTE_LEVEL = ["smollm2", "olmo", "qwen2"]
SENTENCEPIECE = ["llama", "gemma", "unigram"]
IDS = st.lists(st.integers(0, 560) | st.integers(3, 280), max_size=24)


@cache
def load(name: str) -> Tokenizer:
    metadata = json.loads((GOLDEN / f"{name}.json").read_text("ascii"))["metadata"]
    return Tokenizer.from_gguf(metadata, source=name)


@cache
def backend(name: str, folder: Path) -> Backend:
    load(name).save(folder / name)
    return Backend.from_file(str(folder / name / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*[detokenizer.add(index) for index in ids], detokenizer.finish()]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(ids=IDS)
@settings(max_examples=60)
def test_byte_level_ids_of_any_kind_decode_as_tokenizers_does(
    name: str, skip: bool, ids: list[int], folder: Path
) -> None:
    expected = backend(name, folder).decode(ids, skip_special_tokens=skip)
    assert "".join(stream(load(name).detokenizer(skip_special=skip), ids)) == expected
    assert load(name).decode(ids, skip_special=skip) == expected


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", SENTENCEPIECE)
@given(ids=IDS)
@example(ids=[0xE6 + 3, 0x97 + 3, 0xA5 + 3, 400, 0xF0 + 3, 0x9F + 3])
@settings(max_examples=60)
def test_byte_fallback_decodes_as_tokenizers_does_where_bytes_are_text(
    name: str, skip: bool, ids: list[int], folder: Path
) -> None:
    """`tokenizers` makes every byte of a run U+FFFD if any of it is broken; only then do the two differ."""
    expected = backend(name, folder).decode(ids, skip_special_tokens=skip)
    found = "".join(stream(load(name).detokenizer(skip_special=skip), ids))
    assert load(name).decode(ids, skip_special=skip) == found
    if "\ufffd" not in expected:
        assert found == expected
    else:
        assert "\ufffd" in found and len(found) <= len(expected)


@pytest.mark.parametrize("name", SENTENCEPIECE)
# 35 is the byte token of a space: at the front tokenizers strips it, as it does any space; SentencePiece does not.
@given(ids=st.lists(st.integers(3, 400).filter(lambda index: index != 35) | st.integers(128, 258), max_size=24))
@settings(max_examples=100)
def test_broken_bytes_decode_as_sentencepiece_does(name: str, ids: list[int]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / f"{name}.model"))
    assert load(name).decode(ids) == original.decode(ids)


@pytest.mark.parametrize("name", [*BYTE_LEVEL[1:2], *SENTENCEPIECE])
def test_text_comes_out_as_soon_as_it_is_certain(name: str) -> None:
    """After every token, what has come out is the text so far less an unfinished code point at its end."""
    tokenizer = load(name)
    steps = 0
    for text in HARD[::3]:
        ids = tokenizer.encode(text, add_special=False)[:30]
        if "\ufffd" in text:
            continue
        detokenizer = tokenizer.detokenizer(skip_special=False)
        said = ""
        for count, index in enumerate(ids, start=1):
            said += detokenizer.add(index)
            assert said == tokenizer.decode(ids[:count], skip_special=False).rstrip("\ufffd")
        steps += len(ids)
    assert steps > 300


def test_an_emoji_in_four_tokens_comes_out_at_the_fourth() -> None:
    tokenizer = load("llama")
    ids = [byte + 3 for byte in "😀".encode()]
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(index) for index in ids] == ["", "", "", "😀"]
    assert detokenizer.finish() == ""


def test_unfinished_and_broken_sequences() -> None:
    first, second, letter = 0xE6 + 3, 0x97 + 3, ord("x") + 3
    detokenizer = load("llama").detokenizer()
    assert stream(detokenizer, [first, second]) == ["", "", "\ufffd\ufffd"]  # one for each byte, like SentencePiece
    assert stream(detokenizer, [first, second, letter]) == ["", "", "\ufffd\ufffdx", ""]
    assert stream(detokenizer, [second, first, letter]) == ["\ufffd", "", "\ufffdx", ""]
    tokenizer = load("qwen2")
    broken = tokenizer.encode("日", add_special=False)[:-1]
    assert tokenizer.decode(broken) == "\ufffd"  # one for the whole of it, like tokenizers


def test_the_leading_space_of_sentencepiece_goes_once() -> None:
    tokenizer = load("llama")
    for text in ["the fox", " the fox", "  the", " ", "   "]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert "".join(stream(tokenizer.detokenizer(), ids)) == text
    space = tokenizer.encode(" ", add_special=False)
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.add(tokenizer.bos_id or 0) == ""
    said = "".join(detokenizer.add(index) for index in tokenizer.encode("the", add_special=False))
    assert said == "the"
    assert space and detokenizer.add(space[0]) in (" ", "  ")  # in the middle it stays
    assert detokenizer.finish() == ""
    assert detokenizer.add(space[0]) in ("", " ")  # a new text: stripped again


def test_skipped_tokens_do_not_part_a_code_point() -> None:
    tokenizer = load("llama")
    lead, *rest = [byte + 3 for byte in "é".encode()]
    assert tokenizer.decode([lead, 1, *rest]) == "é"
    assert tokenizer.decode([lead, 1, *rest], skip_special=False) == "\ufffd<s>\ufffd"


@pytest.mark.parametrize("token", [-1, 2**32, 2**70, -(2**70)])
def test_ids_that_cannot_be_are_refused(token: int) -> None:
    with pytest.raises(TokenizerError, match=f"{token} is out of range, expected 0 to 699"):
        load("llama").detokenizer().add(token)


def test_ids_beyond_the_vocabulary_are_silent() -> None:
    assert load("llama").decode([700, 99_999, 2**32 - 1]) == ""


def test_every_token_takes_the_same_time() -> None:
    """No look back: what is kept between tokens is shorter than a code point, whatever came before."""
    detokenizer = load("llama").detokenizer()
    for _ in range(500):
        for index in (0xF0 + 3, 0x9F + 3, 400):
            detokenizer.add(index)
        kept = sum(len(value) for value in vars(detokenizer).values() if isinstance(value, (str, bytes, list)))
        assert kept < 4


DECODERS: list[dict[str, Any] | None] = [
    None,
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
    {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": True},
    {"type": "Fuse"},
    {"type": "ByteFallback"},
    {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "Replace", "pattern": {"String": "ab"}, "content": "\u2581"},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 2, "stop": 0},
        ],
    },
    {"type": "Sequence", "decoders": [{"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}]},
]
PIECES = [
    "\u2581",
    "a",
    "\u2581a",
    "\u2581\u2581",
    "ab",
    "_b_",
    "<0x41>",
    "<0xC3>",
    "<0xa9>",
    "<0x4>",
    "\u0120x",
    "é z",
    " ",
]


@pytest.mark.parametrize("decoder", DECODERS)
@given(ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=8))
@settings(max_examples=60)
def test_each_kind_of_decoder(decoder: dict[str, Any] | None, ids: list[int]) -> None:
    words = {"type": "WordLevel", "vocab": {piece: index for index, piece in enumerate(PIECES)}, "unk_token": "a"}
    expected = Backend.from_str(json.dumps({"model": words, "decoder": decoder})).decode(ids)
    spelling = Spelling.from_decoder(decoder, source="tokenizer.json")
    found = "".join(stream(Detokenizer(spelling, lambda index: PIECES[index]), ids))
    if "\ufffd" in expected:
        assert "\ufffd" in found
    else:
        assert found == expected


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        {
            "type": "Sequence",
            "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
        },
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""},
    ],
)
def test_decoders_that_cannot_stream_are_refused(decoder: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: decoder step \d is '\w+'.*expected ByteLevel"):
        Spelling.from_decoder(decoder, source="tokenizer.json")
