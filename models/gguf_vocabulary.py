"""A GGUF file's vocabulary (its `tokenizer.ggml.*` metadata) rebuilt as a tokenizer of the `tokenizers` library.

GGUF keeps pieces, scores or merges, and token types; it leaves out how text is normalised and cut. That is recovered
here from `tokenizer.ggml.model` and `tokenizer.ggml.pre`, as the original tokenizers do it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer

from .errors import TokenizerError
from .gguf_pretokenizers import PRE_TOKENIZERS
from .tokenizer_files import tokenizer_errors

_SPACE = "\u2581"  # SentencePiece writes a space as this character
# Tokens that end a turn, for files that name only `eos_token_id` (llama.cpp goes by the same texts).
_END_OF_TURN = frozenset(
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
    ]
)
# The ids llama.cpp assumes when a SentencePiece file does not say.
_SPM_DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """What the metadata says: the tokenizer itself and the roles of its tokens."""

    backend: Tokenizer
    size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    named_ids: dict[str, int]
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True)
class _Metadata:
    """Typed access to the metadata: every complaint names the file and the key."""

    values: Mapping[str, Any]
    source: str

    def get[T](self, name: str, kind: type[T], default: T | None = None) -> T | None:
        value = self.values.get(f"tokenizer.ggml.{name}")
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(name, f"a value of type {type(value).__name__}", kind.__name__)
        return value

    def array[T](self, name: str, kind: type[T] | tuple[type[T], ...], length: int | None = None) -> list[T] | None:
        value = self.values.get(f"tokenizer.ggml.{name}")
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise self.error(name, f"a value of type {type(value).__name__}", "an array")
        if length is not None and len(value) != length:
            raise self.error(name, f"{len(value)} entries", f"{length}, one for each of tokenizer.ggml.tokens")
        for index, entry in enumerate(value):
            if not isinstance(entry, kind) or isinstance(entry, bool):
                raise self.error(f"{name}[{index}]", f"{entry!r}", "a number or a string, like the rest of the array")
        return list(value)

    def error(self, name: str, found: str, expected: str) -> TokenizerError:
        return TokenizerError(
            f"{self.source}: tokenizer.ggml.{name} is {found}, expected {expected}; "
            "convert the model to GGUF again with a current converter"
        )


def build_vocabulary(metadata: Mapping[str, Any], *, source: str) -> GgufVocabulary:
    """Rebuild the tokenizer that `metadata` (GGUF keys to Python values) describes.

    Raises:
        TokenizerError: a key is missing or wrong, or the kind of vocabulary is not supported; names file and key.
    """
    meta = _Metadata(metadata, source)
    model = meta.get("model", str)
    build = _MODELS.get(model or "")
    if build is None:
        raise meta.error("model", "missing" if model is None else repr(model), f"one of {', '.join(sorted(_MODELS))}")
    tokens = meta.array("tokens", str)
    if not tokens:
        raise meta.error("tokens", "missing" if tokens is None else "empty", "the list of all tokens")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    types = meta.array("token_type", int, len(tokens)) or [TokenType.NORMAL] * len(tokens)
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        # Converters fill ids that no token has with [PAD<id>], so that the list is as long as the embedding table.
        if types[index] == TokenType.UNUSED and token == f"[PAD{index}]":
            continue
        if token in vocabulary:
            raise meta.error(f"tokens[{index}]", f"{token!r}, the same as tokens[{vocabulary[token]}]", "another token")
        vocabulary[token] = index
    ids = _named_ids(meta, len(tokens), _SPM_DEFAULT_IDS if model == "llama" else {})
    description, add_bos, add_eos = build(meta, _Tokens(tokens, types, vocabulary, ids))
    with tokenizer_errors(f"{source}: tokenizer.ggml.*", "building a tokenizer from it"):
        backend = Tokenizer.from_str(json.dumps(description))
    _add_tokens(backend, meta, _Tokens(tokens, types, vocabulary, ids))
    return GgufVocabulary(
        backend=backend,
        size=len(tokens),
        bos_id=ids.get("bos"),
        eos_ids=_eos_ids(vocabulary, types, ids),
        named_ids=ids,
        add_bos=bool(meta.get("add_bos_token", bool, add_bos)) and "bos" in ids,
        add_eos=bool(meta.get("add_eos_token", bool, add_eos)) and "eos" in ids,
    )


def gguf_templates(metadata: Mapping[str, Any], *, source: str) -> dict[str, str]:
    """Chat templates by name: `tokenizer.chat_template`, and `tokenizer.chat_template.NAME` for more of them."""
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            name = key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"
            if not isinstance(value, str) or not name.replace("-", "_").isidentifier():
                kind = type(value).__name__
                raise TokenizerError(
                    f"{source}: {key} is a {kind}, expected a string under a name of letters and digits"
                )
            found[name] = value
    return {name: text for name, text in found.items() if text}


@dataclass(frozen=True)
class _Tokens:
    texts: list[str]
    types: Sequence[int]
    vocabulary: dict[str, int]
    ids: dict[str, int]

    @property
    def unknown(self) -> str | None:
        return self.texts[self.ids["unknown"]] if "unknown" in self.ids else None

    @property
    def has_bytes(self) -> bool:
        return TokenType.BYTE in self.types or "<0x00>" in self.vocabulary


def _named_ids(meta: _Metadata, size: int, defaults: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {name: index for name, index in defaults.items() if index < size}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        index = meta.get(f"{name}_token_id", int)
        if index is None:
            continue
        if not 0 <= index < size:
            raise meta.error(f"{name}_token_id", str(index), f"an id below {size}, the number of tokens")
        found[name] = index
    return found


def _eos_ids(vocabulary: Mapping[str, int], types: Sequence[int], ids: Mapping[str, int]) -> tuple[int, ...]:
    found = {ids[name] for name in ("eos", "eot", "eom") if name in ids}
    ends = {vocabulary[text] for text in _END_OF_TURN if text in vocabulary}
    found |= {index for index in ends if types[index] in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    if {"<|return|>", "<|call|>", "<|end|>"} <= vocabulary.keys():  # gpt-oss: <|end|> closes a channel, not the turn
        found.discard(vocabulary["<|end|>"])
    return tuple(sorted(found))


def _is_gemma(meta: _Metadata) -> bool:
    return str(meta.values.get("general.architecture", "")).startswith("gemma")


def _byte_level(meta: _Metadata, tokens: _Tokens) -> tuple[dict[str, Any], bool, bool]:
    """Model "gpt2": byte-level BPE."""
    name = meta.get("pre", str, "default") or "default"
    rule = PRE_TOKENIZERS.get(name)
    if rule is None:
        raise meta.error("pre", repr(name), f"one of {', '.join(sorted(PRE_TOKENIZERS))}")
    merges = meta.array("merges", str)
    if merges is None:
        raise meta.error("merges", "missing", "the list of merges of a byte-level BPE vocabulary")
    pairs: list[tuple[str, str]] = []
    for index, merge in enumerate(merges):
        head, _, second = merge[1:].partition(" ")  # from 1: the first token may itself begin with a space
        first = merge[:1] + head
        if not second or not {first, second, first + second} <= tokens.vocabulary.keys():
            raise meta.error(
                f"merges[{index}]", repr(merge), "two tokens and a space between them, their union a token"
            )
        pairs.append((first, second))
    model = _bpe(tokens, pairs, unknown=None, ignore_merges=rule.ignore_merges)
    return (
        _description(model, rule.normalizer, rule.pre_tokenizer, {**_BYTE_LEVEL, "use_regex": True}),
        rule.add_bos,
        False,
    )


def _sentencepiece_bpe(meta: _Metadata, tokens: _Tokens) -> tuple[dict[str, Any], bool, bool]:
    """Model "llama": SentencePiece BPE, whose merges are those that its pieces allow, best score first."""
    scores = meta.array("scores", (int, float), len(tokens.texts))
    if scores is None or _is_gemma(meta):  # Gemma's pieces are in order of merging; files are found with other scores
        scores = [float(-index) for index in range(len(tokens.texts))]
    prefix = bool(meta.get("add_space_prefix", bool, not _is_gemma(meta)))
    vocabulary = tokens.vocabulary
    if _is_gemma(meta):
        vocabulary = {_respell(text): index for text, index in vocabulary.items()}
    tokens = _Tokens(tokens.texts, tokens.types, vocabulary, tokens.ids)
    merges = _merges_of(tokens, scores)
    model = _bpe(tokens, merges, unknown=tokens.unknown, byte_fallback=tokens.has_bytes)
    return _description(model, _spm_normalizer(meta, prefix=prefix), None, _spm_decoder(prefix=prefix)), True, False


def _unigram(meta: _Metadata, tokens: _Tokens) -> tuple[dict[str, Any], bool, bool]:
    """Model "t5": SentencePiece unigram."""
    scores = meta.array("scores", (int, float), len(tokens.texts))
    if scores is None:
        raise meta.error("scores", "missing", "the log-probabilities of a unigram vocabulary")
    prefix = bool(meta.get("add_space_prefix", bool, True))
    pieces = [[text, float(score)] for text, score in zip(tokens.texts, scores, strict=True)]
    model = {
        "type": "Unigram",
        "unk_id": tokens.ids.get("unknown", 2 if len(pieces) > 2 else None),
        "vocab": pieces,
        "byte_fallback": tokens.has_bytes,
    }
    return _description(model, _spm_normalizer(meta, prefix=prefix), None, _spm_decoder(prefix=prefix)), False, True


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece_bpe, "t5": _unigram}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _merges_of(tokens: _Tokens, scores: Sequence[float]) -> list[tuple[str, str]]:
    mergeable = {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED}
    order = sorted(tokens.vocabulary.items(), key=lambda item: (-scores[item[1]], item[1]))
    merges: list[tuple[str, str]] = []
    for text, index in order:
        if tokens.types[index] not in mergeable:
            continue
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in halves if pair[0] in tokens.vocabulary and pair[1] in tokens.vocabulary]
        merges += sorted(known, key=lambda pair: (tokens.vocabulary[pair[0]], tokens.vocabulary[pair[1]]))
    return merges


def _bpe(
    tokens: _Tokens,
    merges: list[tuple[str, str]],
    *,
    unknown: str | None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": tokens.vocabulary,
        "merges": [list(pair) for pair in merges],
    }


def _description(
    model: dict[str, Any],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _spm_normalizer(meta: _Metadata, *, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    charsmap = meta.array("precompiled_charsmap", int)
    if charsmap:
        # Four bytes say how long the trie is, in bytes; replacement strings follow it.
        if not all(0 <= byte < 256 for byte in charsmap):
            raise meta.error("precompiled_charsmap", "numbers beyond a byte", "bytes")
        if int.from_bytes(charsmap[:4], "little") + 4 > len(charsmap):
            raise meta.error("precompiled_charsmap", f"{len(charsmap)} bytes, cut short", "a whole table")
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(charsmap)).decode()})
    tidy = meta.get("remove_extra_whitespaces", bool, False)
    if tidy:
        steps += [_replace({"Regex": "^ +"}, ""), _replace({"Regex": " {2,}"}, " ")]
    steps.append(_replace({"String": " "}, _SPACE))
    if tidy:
        steps.append(_replace({"Regex": f"{_SPACE}+$"}, ""))
    if prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _spm_decoder(*, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replace({"String": _SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _respell(text: str) -> str:
    """Converters write Gemma's runs of spaces as spaces; the pieces are runs of U+2581."""
    return _SPACE * len(text) if text and not text.strip(" ") else text


def _add_tokens(backend: Tokenizer, meta: _Metadata, tokens: _Tokens) -> None:
    """Make control tokens (special) and user-defined ones (not special) stay whole wherever they stand in a text."""
    special = {index for index, kind in enumerate(tokens.types) if kind in (TokenType.CONTROL, TokenType.UNKNOWN)}
    # Some files leave the end of a turn as a normal token; what ids name is special.
    special |= {tokens.ids[name] for name in ("bos", "eos", "eot", "eom", "padding") if name in tokens.ids}
    special &= set(tokens.vocabulary.values())
    gemma = _is_gemma(meta)
    phi3 = meta.values.get("general.architecture") == "phi3" and meta.values.get("tokenizer.ggml.model") == "llama"
    for index, text in enumerate(tokens.texts):
        if index in special:
            # Phi-3's special tokens swallow the white space after them, save these.
            rstrip = phi3 and text not in ("<unk>", "<s>", "<|endoftext|>")
            backend.add_special_tokens([AddedToken(text, normalized=False, special=True, rstrip=rstrip)])
        elif tokens.types[index] == TokenType.USER_DEFINED:
            # SentencePiece finds its own symbols in normalised text, where a space is U+2581 (Gemma's runs of spaces).
            spelled = _respell(text) if gemma else text
            backend.add_tokens([AddedToken(spelled, normalized=gemma and _SPACE in spelled)])
