"""How byte-level vocabularies cut text before merging: one entry for each `tokenizer.ggml.pre`.

GGUF stores the name of the rule, not the rule. The rules below are those of the original tokenizer.json files, which
llama.cpp's names stand for; where llama.cpp's own regular expressions are only close to them, the original counts.
"""

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
# Words with a lower-case tail, or a run of upper-case letters: o200k (GPT-4o) and Tekken.
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_O200K = f"{_LOWER}{_CONTRACTIONS}?|{_UPPER}{_CONTRACTIONS}?" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
_TEKKEN = f"{_LOWER}|{_UPPER}" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


@dataclass(frozen=True)
class PreTokenizer:
    """A rule: its tokenizer.json object, Unicode normalisation, and the defaults that come with the name.

    Attributes:
        pre_tokenizer: the `pre_tokenizer` object of a tokenizer.json.
        normalizer: the `normalizer` object, None for none.
        ignore_merges: words that are tokens are taken whole before any merging.
        add_bos: whether BOS is added when `tokenizer.ggml.add_bos_token` is missing.
    """

    pre_tokenizer: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


_NFC = {"type": "NFC"}
# GPT-2's own expression is the one inside ByteLevel(use_regex=True).
_GPT2 = PreTokenizer(_byte_level(use_regex=True))
_GPT2_NFC = PreTokenizer(_byte_level(use_regex=True), _NFC)
_DIGITS = PreTokenizer(_sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)))
_LLAMA3 = PreTokenizer(_sequence(_split(_CL100K), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True)
_GPT4 = PreTokenizer(_sequence(_split(_CL100K), _byte_level(use_regex=False)))
_GPT4O = PreTokenizer(_sequence(_split(_O200K), _byte_level(use_regex=False)))
# What llama.cpp falls back to when a file names no rule.
_DEFAULT = PreTokenizer(
    _sequence(
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        _split(r"\p{N}+"),
        _split(r"[0-9][0-9][0-9]"),
        _byte_level(use_regex=False),
    )
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2_NFC,
    "olmo": _GPT2_NFC,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": PreTokenizer(_LLAMA3.pre_tokenizer, ignore_merges=True),  # Llama 3 derivatives, SmolLM3 among them
    "dbrx": _GPT4,  # OLMo 2 as well
    "qwen2": PreTokenizer(_sequence(_split(_QWEN2), _byte_level(use_regex=False)), _NFC),
    "deepseek-r1-qwen": PreTokenizer(_sequence(_split(_QWEN2), _byte_level(use_regex=False))),
    "gpt-4o": _GPT4O,
    "llama4": PreTokenizer(_GPT4O.pre_tokenizer, add_bos=True),
    "tekken": PreTokenizer(_sequence(_split(_TEKKEN), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True),
}
