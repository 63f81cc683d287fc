"""Tokenizers of folders: as transformers reads them, saved as it reads them, and bad ones refused."""

import json
import os
import runpy
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.models.checkpoints import open_checkpoint
from distaff.models.errors import ChatTemplateError, TokenizerError
from distaff.models.tokenizer import Tokenizer
from distaff.models.tokenizer_files import tokenizer_errors

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden_tokenizers"
FOLDERS: dict[str, Any] = json.loads((GOLDEN / "folders.json").read_text("ascii"))
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder (the golden one "gpt2_bos") for tests to spoil."""
    return write(tmp_path, "gpt2_bos")


def write(folder: Path, name: str) -> Path:
    for path, text in FOLDERS["folders"][name]["files"].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


@cache
def short_smollm2() -> Tokenizer:
    metadata = json.loads((GOLDEN / "smollm2.json").read_text("ascii"))["metadata"]
    return Tokenizer.from_gguf(metadata, source="smollm2.gguf")


@pytest.mark.parametrize("name", FOLDERS["folders"])
def test_folders_are_read_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    expected = FOLDERS["folders"][name]
    tokenizer = Tokenizer.from_folder(write(tmp_path, name))
    for index, text in enumerate(FOLDERS["texts"]):
        ids = tokenizer.encode(text)
        assert ids == expected["ids"][index], text
        assert tokenizer.encode(text, add_special=False) == expected["plain_ids"][index], text
        assert tokenizer.decode(ids) == expected["texts"][index]
        assert tokenizer.decode(ids, skip_special=False) == expected["whole_texts"][index]
    assert tokenizer.bos_id == expected["bos_id"]


def test_the_golden_folders_differ_in_what_they_add() -> None:
    def added(name: str) -> tuple[int, int]:
        rows = FOLDERS["folders"][name]
        pairs = list(zip(rows["ids"], rows["plain_ids"], strict=True))
        return len(pairs), sum(len(ids) - len(plain) for ids, plain in pairs)

    assert added("gpt2") == added("opt_plain") == (len(FOLDERS["texts"]), 0)
    assert added("gpt2_bos") == added("opt") == (len(FOLDERS["texts"]), len(FOLDERS["texts"]))
    assert added("post_processor") == (len(FOLDERS["texts"]), 2 * len(FOLDERS["texts"]))


@pytest.mark.parametrize("name", FOLDERS["folders"])
def test_a_saved_tokenizer_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    first = Tokenizer.from_folder(write(tmp_path / "a", name))
    first.save(tmp_path / "b")
    second = Tokenizer.from_folder(tmp_path / "b")
    for text in FOLDERS["texts"]:
        assert second.encode(text) == first.encode(text)
        assert second.encode(text, add_special=False) == first.encode(text, add_special=False)
    for field in ("bos_id", "eos_ids", "vocab_size", "special_tokens"):
        assert getattr(second, field) == getattr(first, field)
    assert (second.chat_template and second.chat_template.sources) == (
        first.chat_template and first.chat_template.sources
    )


def test_a_saved_gguf_tokenizer_is_the_same_tokenizer(tmp_path: Path) -> None:
    first = short_smollm2()
    first.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    second = Tokenizer.from_folder(tmp_path)
    for text in FOLDERS["texts"]:
        assert second.encode(text) == first.encode(text)
    assert (second.bos_id, second.eos_ids, second.vocab_size) == (1, {0, 2}, 4096)
    assert second.render_chat(MESSAGES) == first.render_chat(MESSAGES)


def test_saving_leaves_a_generation_config_alone(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5, "top_k": 3}')
    short_smollm2().save(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 5, "top_k": 3}
    assert Tokenizer.from_folder(tmp_path).eos_ids == {5}


def test_saving_over_another_tokenizer_leaves_none_of_its_templates(tmp_path: Path) -> None:
    Tokenizer.from_folder(write(tmp_path / "a", "qwen2")).save(tmp_path / "b")
    assert (tmp_path / "b" / "additional_chat_templates" / "tool_use.jinja").is_file()
    Tokenizer.from_folder(write(tmp_path / "c", "gpt2")).save(tmp_path / "b")
    assert Tokenizer.from_folder(tmp_path / "b").chat_template is None


def test_where_the_ids_that_end_a_generation_are_from(folder: Path) -> None:
    assert Tokenizer.from_folder(folder).eos_ids == {2}
    change(folder / "config.json", eos_token_id=7)
    assert Tokenizer.from_folder(folder).eos_ids == {7}
    change(folder / "generation_config.json", eos_token_id=[3, 4])
    assert Tokenizer.from_folder(folder).eos_ids == {3, 4}
    change(folder / "generation_config.json", eos_token_id=None)
    assert Tokenizer.from_folder(folder).eos_ids == {7}


def test_where_chat_templates_are_from(folder: Path) -> None:
    with pytest.raises(ChatTemplateError, match=r"tokenizer\.json: the model has no chat template"):
        Tokenizer.from_folder(folder).render_chat(MESSAGES)
    change(folder / "tokenizer_config.json", chat_template="config {{ bos_token }}")
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES) == "config <|im_start|>"
    named = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "tools"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES) == "named"
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES, tools=[{"a": 1}]) == "tools"
    change(folder / "chat_template.json", chat_template="processor")
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES) == "processor"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }} {{ add_generation_prompt }} {{ x }}")
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES, x="é") == "file hi True é"
    assert Tokenizer.from_folder(folder).render_chat(MESSAGES, add_generation_prompt=False) == "file hi False "


def test_the_chat_of_smollm2() -> None:
    prompt = short_smollm2().render_chat([{"role": "system", "content": "S"}, *MESSAGES])
    assert prompt == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = short_smollm2().encode(prompt, add_special=False)
    assert [index for index in ids if index < 17] == [1, 2, 1, 2, 1]
    assert short_smollm2().decode(ids, skip_special=False) == prompt
    assert short_smollm2().decode(ids) == "system\nS\nuser\nhi\nassistant\n"


def test_the_templates_clock_is_the_clock_by_default(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    assert int(Tokenizer.from_folder(folder).render_chat(MESSAGES)) >= 2024


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate \(U\+D800\) at character 2"):
        short_smollm2().encode("ab\ud800")


def test_huge_texts_are_fine() -> None:
    for text in ("a" * 20_000, " " * 50_000, "\0" * 10_000, "7" * 5_000, "Hello, world 12\n" * 1_000):
        ids = short_smollm2().encode(text)
        assert len(ids) >= len(text) // 64
        if "\0" not in text:
            assert short_smollm2().decode(ids) == text


def test_panics_of_the_library_become_errors() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    words = "m: work failed inside the tokenizers library: index out of bounds"
    with pytest.raises(TokenizerError, match=words), tokenizer_errors("m", "work"):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors("m", "work"):
        raise KeyboardInterrupt
    with pytest.raises(TokenizerError, match=r"m: work failed: .*must be str"), tokenizer_errors("m", "work"):
        Backend(BPE()).encode(3)


def spoil(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


def setting(name: str, **fields: Any) -> Any:
    return lambda folder: change(folder / name, **fields)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json: no such file", "save_pretrained"]),
        (spoil("tokenizer.json", ""), ["tokenizer.json: reading it as a tokenizer failed"]),
        (spoil("tokenizer.json", "{"), ["tokenizer.json: reading it as a tokenizer failed"]),
        (spoil("tokenizer.json", '{"model": {"type": "X"}}'), ["tokenizer.json: reading it as a tokenizer failed"]),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"), ["tokenizer.json: not readable"]),
        (setting("tokenizer.json", decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), ["'WordPiece'"]),
        (spoil("tokenizer_config.json", "[1]"), ["tokenizer_config.json: holds a JSON list, expected an object"]),
        (spoil("tokenizer_config.json", "{,}"), ["tokenizer_config.json: not readable as JSON"]),
        (spoil("tokenizer_config.json", "[" * 100_000), ["tokenizer_config.json: not readable as JSON"]),
        (spoil("special_tokens_map.json", "nul"), ["special_tokens_map.json: not readable as JSON"]),
        (setting("tokenizer_config.json", bos_token=3), ["tokenizer_config.json: bos_token is 3"]),
        (setting("tokenizer_config.json", eos_token={"content": 3}), ["tokenizer_config.json: eos_token is 3"]),
        (setting("tokenizer_config.json", add_bos_token="yes"), ["tokenizer_config.json: add_bos_token is 'yes'"]),
        (setting("tokenizer_config.json", added_tokens_decoder=[1]), ["added_tokens_decoder is a list"]),
        (setting("tokenizer_config.json", added_tokens_decoder={"9": {"content": 1}}), ["added_tokens_decoder.9 is 1"]),
        (setting("tokenizer_config.json", additional_special_tokens=[1]), ["additional_special_tokens is 1"]),
        (setting("tokenizer_config.json", additional_special_tokens=5), ["additional_special_tokens is 5"]),
        (setting("tokenizer_config.json", chat_template=5), ["tokenizer_config.json: chat_template is a int"]),
        (setting("tokenizer_config.json", chat_template=[{"name": "x"}]), ["chat_template is a list"]),
        (
            setting("tokenizer_config.json", chat_template=[{"name": "../../x", "template": "y"}]),
            ["chat_template has the name '../../x'"],
        ),
        (setting("generation_config.json", eos_token_id="2"), ["generation_config.json: eos_token_id is '2'"]),
        (setting("generation_config.json", eos_token_id=[1, None]), ["eos_token_id is [1, None]"]),
        (setting("generation_config.json", eos_token_id=-1), ["eos_token_id is -1"]),
        (setting("config.json", eos_token_id=True), ["config.json: eos_token_id is True"]),
    ],
)  # fmt: skip
def test_bad_files_are_named(folder: Path, damage: Any, words: list[str]) -> None:
    damage(folder)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_folder(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_a_template_that_does_not_compile_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja: the chat template does not compile"):
        Tokenizer.from_folder(folder)


@given(cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), st.text('{}[]",:01ae<|', max_size=6)), max_size=4))
@settings(max_examples=60)
def test_garbled_files_raise_nothing_but_typed_errors(
    cuts: list[tuple[float, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("garbled"), "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for where, length, put in cuts:
            at = int(where * len(text))
            text = text[:at] + put + text[at + length :]
        (folder / name).write_text(text)
    try:
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.decode(tokenizer.encode("the <s>é 日"))
    except TokenizerError:
        pass


def test_the_whole_vocabulary_of_smollm2(smollm2: Path) -> None:
    """The real model's ids on the hard texts."""
    tokenizer = open_checkpoint(smollm2).tokenizer()
    golden = json.loads((GOLDEN / "smollm2.json").read_text("ascii"))
    texts = runpy.run_path(str(GOLDEN / "texts.py"))["HARD"]
    for text, ids, decoded in zip(texts, golden["whole_ids"], golden["whole_texts"], strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special=False) == decoded


def test_saved_tokenizers_mean_the_same_to_transformers(tmp_path: Path) -> None:
    """Runs where there is an oracle environment (`scripts/test --oracle` makes one)."""
    oracle = Path(os.environ.get("DISTAFF_ORACLE_PYTHON", ROOT / ".venv-oracle" / "bin" / "python"))
    if not oracle.exists():
        pytest.skip(f"no oracle environment ({oracle})")
    texts: list[str] = runpy.run_path(str(GOLDEN / "texts.py"))["HARD"]
    for name in ("smollm2", "llama-bpe", "qwen2", "gpt-4o", "llama", "gemma", "unigram"):
        metadata = json.loads((GOLDEN / f"{name}.json").read_text("ascii"))["metadata"]
        tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_eos_token": True}, source=name)
        tokenizer.save(tmp_path / name)
        ids = [tokenizer.encode(text) for text in texts]
        expected = {"texts": texts, "ids": ids, "eos_ids": sorted(tokenizer.eos_ids)}
        change(tmp_path / name / "expected.json", decoded=[tokenizer.decode(row) for row in ids], **expected)
    command = [str(oracle), str(GOLDEN / "check_saved.py"), *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
