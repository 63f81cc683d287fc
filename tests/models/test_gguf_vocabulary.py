"""GGUF vocabularies against their originals (golden_tokenizers/make.py says where the golden ids come from)."""

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from distaff.models.errors import TokenizerError
from distaff.models.gguf_pretokenizers import PRE_TOKENIZERS
from distaff.models.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden_tokenizers"
HARD: list[str] = runpy.run_path(str(GOLDEN / "texts.py"))["HARD"]
BYTE_LEVEL = ["smollm2", "smollm", "gpt-2", "olmo", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken"]
LOSSLESS = ["gpt-2", "llama-bpe", "dbrx", "gpt-4o", "tekken"]
SENTENCEPIECE = ["llama", "gemma", "unigram", "t5"]
# SentencePiece takes `<s>` in a text for three characters; transformers, and so Distaff, for the token.
WITH_TOKENS = "<s> </s> <unk>"


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{name}.json").read_text("ascii"))


def load(name: str, **changes: Any) -> Tokenizer:
    """The golden vocabulary with keys of its metadata replaced (None: removed)."""
    metadata = golden(name)["metadata"] | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None}, source="m.gguf")


@cache
def loaded(name: str) -> Tokenizer:
    return load(name)


@cache
def original(name: str) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / f"{name}.model"))


@pytest.mark.parametrize("name", BYTE_LEVEL + SENTENCEPIECE)
def test_hard_texts_get_the_ids_of_the_original(name: str) -> None:
    tokenizer = load(name)
    rows = golden(name)["ids"]
    assert len(rows) == len(HARD) >= 50
    compared = 0
    for text, expected in zip(HARD, rows, strict=True):
        if name in SENTENCEPIECE and text.startswith(WITH_TOKENS):
            continue
        assert tokenizer.encode(text, add_special=False) == expected, text
        compared += len(expected)
    assert compared > 2000


@pytest.mark.parametrize("name", [*BYTE_LEVEL[1:], *SENTENCEPIECE[:3]])
def test_the_ids_of_hard_texts_decode_as_the_original_does(name: str) -> None:
    tokenizer = load(name)
    for row, expected in zip(golden(name)["ids"], golden(name)["texts"], strict=True):
        assert tokenizer.decode(row, skip_special=name in SENTENCEPIECE) == expected


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text(max_size=60))
@settings(max_examples=60)
def test_any_text_survives(name: str, text: str) -> None:
    tokenizer = loaded(name)
    assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text


SCRIPTS = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from(" \u2581\n\t\rabcdefthing123é日本👍🏽\u0301\u200d.,'"), max_size=60),
    st.lists(st.sampled_from([" ", "  ", "the", "The", " fox", "ing", "\n", "12", "日", "ß", "\u2581"])).map("".join),
)


@pytest.mark.parametrize("name", SENTENCEPIECE[:3])
@given(text=SCRIPTS)
@settings(max_examples=150)
def test_any_text_gets_the_ids_of_sentencepiece(name: str, text: str) -> None:
    assert loaded(name).encode(text, add_special=False) == original(name).encode(text)


def cuts(name: str) -> list[list[str]]:
    """The pieces that a rule cuts the hard texts into."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    rule = Backend.from_str(json.dumps({"model": empty, "pre_tokenizer": PRE_TOKENIZERS[name].pre_tokenizer}))
    assert rule.pre_tokenizer is not None
    return [[piece for piece, _ in rule.pre_tokenizer.pre_tokenize_str(text)] for text in HARD]


def test_every_rule_cuts_in_its_own_way() -> None:
    rules = {json.dumps(rule.pre_tokenizer): name for name, rule in PRE_TOKENIZERS.items()}
    assert len(rules) == 7
    found = [cuts(name) for name in rules.values()]
    for index, pieces in enumerate(found):
        assert pieces not in found[:index]


def test_the_digits_rule_of_smollm_matters() -> None:
    """What is lost when the file is read as plain GPT-2 (as transformers reads it)."""
    tokenizer = load("smollm2", pre="gpt-2")
    other = [tokenizer.encode(text) != row for text, row in zip(HARD, golden("smollm2")["ids"], strict=True)]
    assert 1 <= sum(other) <= 10


def test_pre_default_is_what_a_file_without_a_rule_gets() -> None:
    tokenizer = load("gpt-2", pre=None)
    assert [tokenizer.encode(text) for text in HARD] == [load("gpt-2", pre="default").encode(text) for text in HARD]
    assert cuts("default") != cuts("gpt-2")


@pytest.mark.parametrize(
    ("name", "changes", "starts", "ends"),
    [
        ("gpt-2", {}, [], []),
        ("gpt-2", {"add_bos_token": True}, [1], []),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ("gpt-2", {"add_bos_token": True, "bos_token_id": None}, [], []),
        ("llama-bpe", {}, [1], []),
        ("llama-bpe", {"add_bos_token": False}, [], []),
        ("tekken", {}, [1], []),
        ("llama", {}, [1], []),
        ("llama", {"bos_token_id": None, "eos_token_id": None, "add_eos_token": True}, [1], [2]),
        ("llama", {"add_bos_token": False}, [], []),
        ("t5", {}, [], [2]),
    ],
)
def test_bos_and_eos(name: str, changes: dict[str, Any], starts: list[int], ends: list[int]) -> None:
    tokenizer = load(name, **changes)
    plain = tokenizer.encode("the fox", add_special=False)
    assert plain and not {1, 2} & set(plain)
    assert tokenizer.encode("the fox") == [*starts, *plain, *ends]
    assert tokenizer.encode("") == [*starts, *ends]


def test_ids_that_end_a_generation() -> None:
    assert load("gpt-2").eos_ids == {0, 2}  # <|endoftext|> by its text, <|im_end|> by its id
    assert load("gpt-2", eot_token_id=7, eom_token_id=9).eos_ids == {0, 2, 7, 9}
    assert load("llama").eos_ids == {2}
    tokens: list[str] = golden("gpt-2")["metadata"]["tokenizer.ggml.tokens"]
    types = golden("gpt-2")["metadata"]["tokenizer.ggml.token_type"]
    # gpt-oss: <|end|> closes a channel, the turn goes on.
    names = ["<|return|>", "<|call|>", "<|end|>"]
    tokenizer = load("gpt-2", tokens=[*tokens, *names], token_type=[*types, 3, 3, 3], eot_token_id=len(tokens) + 2)
    assert tokenizer.eos_ids == {0, 2, len(tokens), len(tokens) + 1}
    # The same text as a normal token is no end.
    assert load("gpt-2", tokens=[*tokens, "<|end|>"], token_type=[*types, 1]).eos_ids == {0, 2}


def test_kinds_of_tokens() -> None:
    tokens: list[str] = golden("gpt-2")["metadata"]["tokenizer.ggml.tokens"]
    types = golden("gpt-2")["metadata"]["tokenizer.ggml.token_type"]
    size = len(tokens)
    more = ["<think>", "<|control|>", f"[PAD{size + 2}]", "  two words  ", ""]
    tokenizer = load("gpt-2", tokens=tokens + more, token_type=[*types, 4, 3, 5, 4, 5])
    assert tokenizer.encode("<think><|control|>  two words  ") == [size, size + 1, size + 3]
    assert tokenizer.decode([size, size + 1, size + 3]) == "<think>  two words  "
    assert tokenizer.decode([size, size + 1, size + 3], skip_special=False) == "<think><|control|>  two words  "
    assert tokenizer.decode([size + 2]) == ""  # filling of the embedding table is no token
    assert tokenizer.vocab_size == size + 5
    assert size + 2 not in tokenizer.encode(f"[PAD{size + 2}]")


def test_phi3_special_tokens_swallow_white_space() -> None:
    metadata = golden("llama")["metadata"]
    phi3 = Tokenizer.from_gguf(metadata | {"general.architecture": "phi3"}, source="m.gguf")
    llama = Tokenizer.from_gguf(metadata, source="m.gguf")
    assert phi3.encode("</s>\n the") == phi3.encode("</s>the") != phi3.encode("<s>\n the")
    assert llama.encode("</s>\n the") != llama.encode("</s>the")


def test_several_chat_templates() -> None:
    templates = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    tokenizer = Tokenizer.from_gguf(golden("gpt-2")["metadata"] | templates, source="m.gguf")
    assert tokenizer.render_chat([]) == "plain"
    assert tokenizer.render_chat([], tools=[{"name": "f"}]) == "tools"


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": None}, ["tokenizer.ggml.model", "missing", "gpt2, llama, t5"]),
        ({"model": "bert"}, ["tokenizer.ggml.model", "'bert'", "gpt2, llama, t5"]),
        ({"model": 7}, ["tokenizer.ggml.model", "int"]),
        (
            {"pre": "deepseek-coder"},
            ["tokenizer.ggml.pre", "'deepseek-coder'", "llama-bpe", "smollm", "qwen2", "gpt-4o"],
        ),
        ({"tokens": None}, ["tokenizer.ggml.tokens", "missing"]),
        ({"tokens": []}, ["tokenizer.ggml.tokens", "empty"]),
        ({"tokens": "abc"}, ["tokenizer.ggml.tokens", "str"]),
        ({"tokens": ["a", 1]}, ["tokenizer.ggml.tokens[1]", "1"]),
        ({"tokens": ["a", "b", "a"], "token_type": None}, ["tokenizer.ggml.tokens[2]", "tokens[0]"]),
        ({"token_type": [1, 2]}, ["tokenizer.ggml.token_type", "2 entries", "519"]),
        ({"merges": None}, ["tokenizer.ggml.merges", "missing"]),
        ({"merges": ["h e", "nospace"]}, ["tokenizer.ggml.merges[1]", "nospace"]),
        ({"merges": ["h \u2581"]}, ["tokenizer.ggml.merges[0]"]),
        ({"bos_token_id": 519}, ["tokenizer.ggml.bos_token_id", "519"]),
        ({"eos_token_id": -1}, ["tokenizer.ggml.eos_token_id", "-1"]),
        ({"eos_token_id": "2"}, ["tokenizer.ggml.eos_token_id", "str"]),
        ({"add_bos_token": 1}, ["tokenizer.ggml.add_bos_token", "int"]),
    ],
)
def test_bad_metadata_is_named(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(TokenizerError) as caught:
        load("gpt-2", **changes)
    for name in ["m.gguf", *names]:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("llama", {"scores": [1.0]}, "tokenizer.ggml.scores"),
        ("llama", {"scores": ["x"] * 700}, "tokenizer.ggml.scores[0]"),
        ("t5", {"scores": None}, "tokenizer.ggml.scores"),
        ("t5", {"precompiled_charsmap": [1, 2, 3]}, "tokenizer.ggml"),
        ("t5", {"precompiled_charsmap": [300] * 9}, "tokenizer.ggml.precompiled_charsmap"),
    ],
)
def test_bad_sentencepiece_metadata_is_named(name: str, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        load(name, **changes)
    assert "m.gguf" in str(caught.value) and key in str(caught.value)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
KEYS = [
    "model",
    "pre",
    "tokens",
    "scores",
    "token_type",
    "merges",
    "bos_token_id",
    "eos_token_id",
    "unknown_token_id",
    "padding_token_id",
]
KEYS += ["add_bos_token", "add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap"]


@given(
    model=st.sampled_from(["gpt2", "llama", "t5"]),
    tokens=st.lists(st.text("ab <>\u2581", max_size=3), max_size=8),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
    shape=st.data(),
)
@settings(max_examples=300)
def test_junk_raises_nothing_but_tokenizer_errors(
    model: str, tokens: list[str], changes: dict[str, Any], shape: st.DataObject
) -> None:
    numbers = st.lists(st.integers(0, 7), min_size=len(tokens), max_size=len(tokens))
    floats = st.lists(st.floats(width=32), min_size=len(tokens), max_size=len(tokens))
    values = {"model": model, "tokens": tokens, "token_type": shape.draw(numbers), "scores": shape.draw(floats)}
    values |= {"merges": shape.draw(st.lists(st.sampled_from(["a b", "ab a", "b b"]), max_size=2))} | changes
    complaint = ""
    try:
        tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()}, source="m")
        tokenizer.decode(tokenizer.encode("ab <a>\u2581 é"))
    except TokenizerError as error:
        complaint = str(error)
    assert not complaint or "m: " in complaint
