"""Make folders.json: tokenizer folders in the forms found on the hub, and how transformers reads them.

python tests/models/golden_tokenizers/make_folders.py        (in the oracle environment, after make.py)
"""

import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

HERE = Path(__file__).parent
HARD: list[str] = runpy.run_path(str(HERE / "texts.py"))["HARD"]
KEPT = [*HARD[::3], "<|im_start|>user<|im_end|>", "<s>a</s> <pad>b<extra>", "x<new>y  <new_too> z"]


def vocabulary(name: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    metadata = json.loads((HERE / f"{name}.json").read_text())["metadata"]
    tokens = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = metadata["tokenizer.ggml.merges"][:60]
    short = {token: index for token, index in tokens.items() if index < 259 + len(merges)}
    return short, [tuple(merge.split(" ")) for merge in merges]


def folders(root: Path) -> None:
    tokens, merges = vocabulary("gpt-2")
    gpt2 = {"vocab": tokens, "merges": merges, "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    GPT2Tokenizer(**gpt2, unk_token="<|endoftext|>").save_pretrained(root / "gpt2")
    GPT2Tokenizer(**gpt2, unk_token="<|endoftext|>", add_bos_token=True).save_pretrained(root / "gpt2_bos")
    tokens, merges = vocabulary("qwen2")
    qwen = Qwen2Tokenizer(vocab=tokens, merges=merges, eos_token="<|im_end|>", add_bos_token=False)
    qwen.add_tokens([AddedToken("<new>", special=False), AddedToken("<new_too>", special=False, lstrip=True)])
    qwen.chat_template = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ messages[0].content }}"}
    qwen.save_pretrained(root / "qwen2")

    # OPT has no tokenizer.json: here tokenizer_config.json decides about BOS.
    for name, flags in {"opt": {"add_bos_token": True}, "opt_plain": {}}.items():
        (root / name).mkdir()
        (root / name / "vocab.json").write_text(json.dumps(tokens))
        (root / name / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        (root / name / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
        config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}
        config |= {"eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", **flags}
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))

    # A post-processor in tokenizer.json and no word about BOS in tokenizer_config.json, as Llama 3 has it.
    whole = Tokenizer.from_file(str(root / "gpt2" / "tokenizer.json"))
    whole.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    for name, config in {
        "post_processor": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "post_processor_overruled": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False},
        "eos_only": {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": True, "add_eos_token": True},
        "objects": {
            "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
            "eos_token": {"__type": "AddedToken", "content": "<s>", "special": True, "normalized": False},
            "pad_token": "<pad>",
            "additional_special_tokens": ["<extra>", {"__type": "AddedToken", "content": "<new>", "special": True}],
            "added_tokens_decoder": {
                "600": {"content": "<new_too>", "special": False, "lstrip": True, "rstrip": True, "normalized": False}
            },
            "add_bos_token": True,
            "chat_template": "in the config {{ messages[0].content }}",
        },
    }.items():
        (root / name).mkdir()
        whole.save(str(root / name / "tokenizer.json"))
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
        (root / name / "tokenizer_config.json").write_text(text)
    (root / "objects" / "chat_template.jinja").write_text("in its own file {{ messages[0].content }}")
    (root / "objects" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (root / "post_processor" / "generation_config.json").write_text('{"eos_token_id": 7}')

    pieces = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *map(chr, range(97, 123)), "\u2581"])}
    pieces |= {pair: len(pieces) + index for index, pair in enumerate(["th", "the", "\u2581the", "\u2581\u2581"])}
    pairs = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("\u2581", "\u2581")]
    LlamaTokenizer(vocab=pieces, merges=pairs).save_pretrained(root / "llama")
    LlamaTokenizer(vocab=pieces, merges=pairs, add_eos_token=True).save_pretrained(root / "llama_eos")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.enable_truncation(2)
    words.enable_padding(length=5, pad_id=0, pad_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(root / "words")


def compact(file: Path) -> str:
    text = file.read_text()
    return json.dumps(json.loads(text), separators=(",", ":")) if file.suffix == ".json" else text


def main() -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        folders(root)
        for path in sorted(root.iterdir()):
            tokenizer = AutoTokenizer.from_pretrained(path)
            rows = [tokenizer.encode(text) for text in KEPT]
            found[path.name] = {
                "files": {
                    str(file.relative_to(path)): compact(file) for file in sorted(path.rglob("*")) if file.is_file()
                },
                "ids": rows,
                "plain_ids": [tokenizer.encode(text, add_special_tokens=False) for text in KEPT],
                "texts": [tokenizer.decode(row, skip_special_tokens=True) for row in rows],
                "whole_texts": [tokenizer.decode(row, skip_special_tokens=False) for row in rows],
                "bos_id": tokenizer.bos_token_id,
                "eos_id": tokenizer.eos_token_id,
            }
    data = json.dumps({"texts": KEPT, "folders": found}, ensure_ascii=True, separators=(",", ":"))
    (HERE / "folders.json").write_text(data + "\n", "ascii")


if __name__ == "__main__":
    main()
