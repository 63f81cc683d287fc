"""Make the golden files of the tokenizer tests: vocabularies as GGUF metadata, and the ids of their originals.

Run in an environment with transformers, sentencepiece, gguf and regex (`scripts/test --oracle` has one):

    python tests/models/golden_tokenizers/make.py [--smollm2 SmolLM2-135M-Instruct.gguf]

Every byte-level original is checked against a second one, written here in plain Python over the `regex` package, so
that no golden id rests on the `tokenizers` library alone.
"""

import argparse
import io
import itertools
import json
import runpy
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import regex
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

HERE = Path(__file__).parent
TEXTS = runpy.run_path(str(HERE / "texts.py"))
TRAINING: str = TEXTS["TRAINING"]
HARD: list[str] = TEXTS["HARD"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLITS = GGUF_PRE_TOKENIZER_SPLITS


def write(name: str, data: dict[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(data, ensure_ascii=True, separators=(",", ":")) + "\n", "ascii")


def split_on(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def isolated(pattern: str) -> Callable[[str], Iterable[str]]:
    """What Split(isolated) does: the matches, and what lies between them."""
    compiled = regex.compile(pattern)

    def cut(text: str) -> Iterable[str]:
        at = 0
        for match in compiled.finditer(text):
            if match.start() > at:
                yield text[at : match.start()]
            if match.end() > match.start():
                yield match[0]
            at = match.end()
        if at < len(text):
            yield text[at:]

    return cut


class PlainBpe:
    """Byte-level BPE by the book: cut, spell as bytes, merge the pair of lowest rank, leftmost first."""

    def __init__(self, metadata: dict[str, Any], cuts: list[str], *, nfc: bool, ignore_merges: bool) -> None:
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        self.ids = {token: index for index, token in enumerate(tokens) if types[index] != UNUSED}
        whole = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
        self.whole = regex.compile("|".join(regex.escape(token) for token in sorted(whole, key=len, reverse=True)))
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}
        self.cuts = [isolated(cut) for cut in cuts]
        self.nfc, self.ignore_merges = nfc, ignore_merges
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        self.spelling = {byte: chr(byte) for byte in printable}
        for byte in range(256):
            self.spelling.setdefault(byte, chr(256 + len(self.spelling) - len(printable)))

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        for part in isolated(self.whole.pattern)(text):
            if self.whole.fullmatch(part):
                found.append(self.ids[part])
                continue
            words = [unicodedata.normalize("NFC", part) if self.nfc else part]
            for cut in self.cuts:
                words = [piece for word in words for piece in cut(word)]
            for word in words:
                found += self.word([self.spelling[byte] for byte in word.encode()])
        return found

    def word(self, symbols: list[str]) -> list[int]:
        if self.ignore_merges and "".join(symbols) in self.ids:
            return [self.ids["".join(symbols)]]
        symbols = [symbol for symbol in symbols if symbol in self.ids]  # a byte without a token is dropped
        while len(symbols) > 1:
            pairs = [self.ranks.get(pair, 1 << 30) for pair in itertools.pairwise(symbols)]
            best = min(pairs)
            if best == 1 << 30:
                break
            at = pairs.index(best)
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        return [self.ids[symbol] for symbol in symbols]


def byte_level_metadata(original: Tokenizer, pre: str, special: list[str], user: list[str]) -> dict[str, Any]:
    vocabulary = original.get_vocab()
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    kinds = dict.fromkeys(special, CONTROL) | dict.fromkeys(user, USER_DEFINED)
    merges = [" ".join(pair) for pair in json.loads(original.to_str())["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, NORMAL) for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index(special[1]),
        "tokenizer.ggml.eos_token_id": tokens.index(special[2]),
    }


def rebuilt(original: Any) -> Tokenizer:
    return getattr(original, "backend_tokenizer", original)


def byte_level(
    pre: str,
    rule: Any,
    cuts: list[str],
    *,
    nfc: bool = False,
    ignore_merges: bool = False,
    alphabet: list[str] | None = None,
    published: Any = None,
    extra: tuple[str, ...] = (),
    user: tuple[str, ...] = (),
) -> None:
    """Train with `rule`, or with the pre-tokenizer of the class `published`, and write metadata and ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = rule
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(
        vocab_size=3 + len(letters) + 260,
        special_tokens=SPECIAL,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING.splitlines(keepends=True), trainer)
    description = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    for token in (*extra, *user):
        vocabulary[token] = len(vocabulary)
    merges = [tuple(pair) for pair in description["model"]["merges"]]
    added = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    if published is not None:
        names = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": None, "pad_token": None}
        original = rebuilt(published(vocab=vocabulary, merges=merges, **names))
    else:
        original = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
        original.pre_tokenizer = rule
        original.decoder = decoders.ByteLevel()
    original.add_special_tokens(added)
    original.add_tokens([AddedToken(token, special=False, normalized=False) for token in user])
    metadata = byte_level_metadata(original, pre, SPECIAL, list(user))
    plain = PlainBpe(metadata, cuts, nfc=nfc, ignore_merges=ignore_merges)
    ids = [original.encode(text, add_special_tokens=False).ids for text in HARD]
    for text, expected in zip(HARD, ids, strict=True):
        assert plain.encode(text) == expected, (pre, text, plain.encode(text), expected)
    texts = [original.decode(row, skip_special_tokens=False) for row in ids]
    write(pre, {"metadata": metadata, "ids": ids, "texts": texts})


def byte_level_families() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    # SmolLM's alphabet lacks some bytes; text that needs them is lost.
    known = [letter for letter in pre_tokenizers.ByteLevel.alphabet() if ord(letter) not in range(0x100, 0x10A)]
    byte_level("smollm", digits, [r"\p{N}", GPT2_SPLIT], alphabet=known)
    byte_level("gpt-2", gpt2, [GPT2_SPLIT], published=GPT2Tokenizer)
    byte_level("olmo", gpt2, [GPT2_SPLIT], nfc=True, published=GPTNeoXTokenizer, user=("   ", "\t\t", "    \n"))
    llama3 = SPLITS["llama-bpe"]
    unmerged = ("\u0120separated", "HTTPServer", "123")  # whole words that no merge leads to
    byte_level("llama-bpe", split_on(llama3), [llama3], ignore_merges=True, extra=unmerged)
    byte_level("dbrx", split_on(SPLITS["dbrx"]), [SPLITS["dbrx"]], user=("<think>",))
    byte_level("qwen2", split_on(SPLITS["qwen2"]), [SPLITS["qwen2"]], nfc=True, published=Qwen2Tokenizer)
    byte_level("gpt-4o", split_on(SPLITS["gpt-4o"]), [SPLITS["gpt-4o"]])
    byte_level("tekken", split_on(SPLITS["tekken"]), [SPLITS["tekken"]], ignore_merges=True, extra=unmerged)


def sentencepiece_metadata(processor: Any, model: str, **more: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes it, user-defined pieces included (it finds them in tokenizer_config.json)."""
    size = processor.get_piece_size()
    tokens = [processor.id_to_piece(index) for index in range(size)]
    scores = [processor.get_score(index) for index in range(size)]
    types = []
    for index in range(size):
        flags = [(UNKNOWN, processor.is_unknown), (CONTROL, processor.is_control)]
        flags += [(UNUSED, processor.is_unused), (BYTE, processor.is_byte)]
        types.append(next((kind for kind, check in flags if check(index)), NORMAL))
    for index, token in enumerate(tokens):
        if token in more["user_defined"]:
            types[index], scores[index] = USER_DEFINED, -1000.0
            tokens[index] = token.replace("\u2581", " ")
    metadata = {
        "general.architecture": more.get("architecture", "llama"),
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.add_space_prefix": more["add_space_prefix"],
    }
    if more.get("remove_extra_whitespaces"):
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = True
    if more.get("charsmap"):
        metadata["tokenizer.ggml.precompiled_charsmap"] = list(more["charsmap"])
    return metadata


def sentencepiece_vocabulary(name: str, model: str, *, architecture: str = "llama", **options: Any) -> None:
    from sentencepiece import sentencepiece_model_pb2

    stream = io.BytesIO()
    settings: dict[str, Any] = {
        "vocab_size": 700,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "num_threads": 1,
        "minloglevel": 2,
        "bos_piece": "<s>",
        **options,
    }
    lines = iter(TRAINING.splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=stream, **settings)
    proto = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    metadata = sentencepiece_metadata(
        processor,
        model,
        architecture=architecture,
        user_defined=set(settings.get("user_defined_symbols", [])),
        add_space_prefix=settings.get("add_dummy_prefix", True),
        remove_extra_whitespaces=settings["remove_extra_whitespaces"],
        charsmap=proto.normalizer_spec.precompiled_charsmap,
    )
    ids = [processor.encode(text) for text in HARD]
    texts = [processor.decode(row) for row in ids]
    write(name, {"metadata": metadata, "ids": ids, "texts": texts})
    proto.normalizer_spec.normalization_rule_tsv = ""  # a temporary file's path; its rules are compiled in
    (HERE / f"{name}.model").write_bytes(proto.SerializeToString())


def sentencepiece_families() -> None:
    sentencepiece_vocabulary("llama", "llama", model_type="bpe")
    runs = ["\u2581" * count for count in range(2, 12)]
    lines = ["\n" * count for count in range(1, 5)]
    sentencepiece_vocabulary(
        "gemma",
        "llama",
        architecture="gemma2",
        model_type="bpe",
        add_dummy_prefix=False,
        user_defined_symbols=[*runs, *lines, "\t", "<start_of_turn>"],
    )
    sentencepiece_vocabulary("unigram", "t5", model_type="unigram")
    # A few of the rules of NFKC: its whole table makes a golden file of a megabyte. Rules of several code points are
    # left out on purpose: tokenizers applies the table grapheme by grapheme, SentencePiece by the longest match.
    pairs = [
        *zip(range(0xFF01, 0xFF5F), range(0x21, 0x7F), strict=True),
        (0x3000, 0x20),
        (0xA0, 0x20),
        (0x09, 0x20),
        (0x0A, 0x20),
    ]
    rules = [f"{old:x}\t{new:x}" for old, new in pairs] + ["fb01\t66 69", "fb00\t66 66", "e000\t"]
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        table.write("\n".join(rules) + "\n")
        table.flush()
        sentencepiece_vocabulary(
            "t5",
            "t5",
            architecture="t5",
            model_type="unigram",
            vocab_size=450,
            byte_fallback=False,
            normalization_rule_name="user_defined",
            normalization_rule_tsv=table.name,
            remove_extra_whitespaces=True,
        )


def smollm2(path: Path) -> None:
    """The first 4,096 tokens of the real vocabulary with its merges, and ids under the whole of it."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    metadata = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    first = metadata["tokenizer.ggml.tokens"][:4096]
    known = set(first)
    merges = metadata["tokenizer.ggml.merges"]
    kept = [merge for merge in merges if {*merge.split(" "), merge.replace(" ", "")} <= known]
    short = metadata | {
        "tokenizer.ggml.tokens": first,
        "tokenizer.ggml.token_type": metadata["tokenizer.ggml.token_type"][:4096],
        "tokenizer.ggml.merges": kept,
    }
    rows: list[list[list[int]]] = []
    for values in (short, metadata):
        vocabulary = {token: index for index, token in enumerate(values["tokenizer.ggml.tokens"])}
        pairs = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
        # As in the tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct: digits one by one, GPT-2's expression,
        # no normalizer, no unknown token. transformers' reading of the GGUF leaves the digits out.
        original = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
        original.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        original.decoder = decoders.ByteLevel()
        original.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in first[:17]])
        plain = PlainBpe(values, [r"\p{N}", GPT2_SPLIT], nfc=False, ignore_merges=False)
        rows.append([original.encode(text, add_special_tokens=False).ids for text in HARD])
        for text, expected in zip(HARD, rows[-1], strict=True):
            assert plain.encode(text) == expected, (text, plain.encode(text), expected)
        texts = [original.decode(row, skip_special_tokens=False) for row in rows[-1]]
    write("smollm2", {"metadata": short, "ids": rows[0], "whole_ids": rows[1], "whole_texts": texts})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", type=Path)
    arguments = parser.parse_args()
    byte_level_families()
    sentencepiece_families()
    if arguments.smollm2:
        smollm2(arguments.smollm2)
