"""A tokenizer as the vocabulary metadata of a GGUF file."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...backends.errors import UnsupportedError
from ..errors import TokenizerError
from ..gguf_pretokenizers import PRE_TOKENIZERS
from ..gguf_vocabulary import TokenType
from ..tokenizer import Tokenizer
from .base import Checkpoint
from .gguf import GGUFCheckpoint

_PROBE: Final = "Hello, world!  Ünïcode — 12345 'tis\n\tif (x) { return 東京 🎉; }"


def tokenizer_metadata(source: Checkpoint, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.*` keys and values; none where the checkpoint has no tokenizer.

    Raises:
        UnsupportedError: GGUF has no model or rule for this tokenizer.
    """
    if isinstance(source, GGUFCheckpoint):
        return {key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")}
    try:
        tokenizer = source.tokenizer()
    except TokenizerError:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        stored = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    metadata = _vocabulary(stored, vocab_size) | _roles(tokenizer)
    _check_same(tokenizer, metadata)
    return metadata


def _vocabulary(stored: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    model = stored["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"--to gguf: tokenizer.json: found model {model['type']!r}, expected 'BPE'")
    added = {entry["id"]: entry for entry in stored["added_tokens"]}
    texts: dict[int, str] = {index: text for text, index in model["vocab"].items()}
    texts |= {index: entry["content"] for index, entry in added.items()}
    size = max(vocab_size, 1 + max(texts))
    byte_level = not model["byte_fallback"]

    def kind(index: int) -> TokenType:
        if index not in texts:
            return TokenType.UNUSED
        if index in added:
            return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
        text = texts[index]
        return TokenType.BYTE if not byte_level and len(text) == 6 and text.startswith("<0x") else TokenType.NORMAL

    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": [texts.get(index, f"[PAD{index}]") for index in range(size)],
        "tokenizer.ggml.token_type": [int(kind(index)) for index in range(size)],
    }
    if not byte_level:
        steps = json.dumps(stored["normalizer"])
        return metadata | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": [float(-index) for index in range(size)],
            "tokenizer.ggml.add_space_prefix": "Prepend" in steps,
        }
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return metadata | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _rule_name(stored),
        "tokenizer.ggml.merges": merges,
    }


def _rule_name(stored: Mapping[str, Any]) -> str:
    for name, rule in PRE_TOKENIZERS.items():
        same = rule.pre_tokenizer == stored["pre_tokenizer"] and rule.normalizer == stored["normalizer"]
        if same and rule.ignore_merges == bool(stored["model"].get("ignore_merges")):
            return name
    raise UnsupportedError(
        f"--to gguf: tokenizer.json: pre_tokenizer: found {json.dumps(stored['pre_tokenizer'])[:300]}, expected one of "
        f"llama.cpp's rules: {', '.join(PRE_TOKENIZERS)}; convert to safetensors or orbax"
    )


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    plain, framed = (tokenizer.encode("a", add_special=special) for special in (False, True))
    added = len(framed) - len(plain)
    before = framed[:added] == [tokenizer.bos_id]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": before,
        "tokenizer.ggml.add_eos_token": added > before,
    }
    if tokenizer.bos_id is not None:
        metadata["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    names = ("eos", "eot", "eom")  # a text, a turn, a message
    ends = sorted(tokenizer.eos_ids)
    eos = tokenizer.special_tokens.get("eos_token")
    if eos is not None and (first := tokenizer.encode(eos, add_special=False)) and first[0] in ends:
        ends = [first[0], *(end for end in ends if end != first[0])]
    metadata |= {f"tokenizer.ggml.{name}_token_id": end for name, end in zip(names, ends, strict=False)}
    template = tokenizer.chat_template.sources.get("default") if tokenizer.chat_template else None
    return metadata if template is None else metadata | {"tokenizer.chat_template": template}


def _check_same(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    back = Tokenizer.from_gguf(metadata, source="GGUF metadata")
    if back.encode(_PROBE) != tokenizer.encode(_PROBE):
        raise UnsupportedError(
            "--to gguf: tokenizer.json: the vocabulary, written as GGUF and read back, cuts text in another way; "
            "convert to safetensors or orbax"
        )
