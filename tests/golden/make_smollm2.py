"""Makes the golden tokens of SmolLM2-135M-Instruct: `transformers` on the dequantised weights of the GGUF file.

Runs in the oracle environment (transformers 5, torch on CPU, gguf), never in Distaff's own:

    python tests/golden/make_smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out tests/golden/smollm2_instruct.json

Writes, per prompt: the prompt (text or chat messages), its token ids, 64 greedy token ids (fp32; fewer if the model
ends) and the distance of the two best logits at each of them.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

GREEDY = 64
# Chosen so that no decision of the first 64 is close: all of them can be compared.
PROMPTS: tuple[str | list[dict[str, str]], ...] = (
    "The history of the bicycle begins",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "日本の首都は東京です。",
    [{"role": "user", "content": "Explain in a few sentences why the sky is blue."}],
)

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _name(name: str) -> str:
    """The `transformers` name of a GGUF tensor."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, leaf = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.{leaf}"


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the row order that GGUF files of llama models give to q and k (pairs (0, 1), (2, 3), ... are rotated)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load(path: Path) -> LlamaForCausalLM:
    """The model of a llama GGUF file, dequantised to float32."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    state: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = _halves(weight, heads if ".attn_q." in tensor.name else kv_heads)
        state[_name(tensor.name)] = torch.from_numpy(weight)
    model = LlamaForCausalLM(config).float().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: list[int], eos: int) -> tuple[list[int], list[float]]:
    """Greedy tokens (a stopping EOS included) and the top-2 logit gap at each."""
    tokens: list[int] = []
    gaps: list[float] = []
    output = model(torch.tensor([prompt]), use_cache=True)
    for _ in range(GREEDY):
        best = output.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
        if tokens[-1] == eos:
            break
        output = model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
    return tokens, gaps


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(args.gguf.parent), gguf_file=args.gguf.name)
    model = load(args.gguf)
    rows: list[dict[str, Any]] = []
    for prompt in PROMPTS:
        if isinstance(prompt, str):
            ids, text = tokenizer(prompt)["input_ids"], prompt
        else:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, gaps = greedy(model, ids, tokenizer.eos_token_id)
        key = "prompt" if isinstance(prompt, str) else "messages"
        rows.append({key: prompt, "rendered": text, "prompt_token_ids": ids, "token_ids": tokens, "gaps": gaps,
                     "text": tokenizer.decode(tokens, skip_special_tokens=True)})  # fmt: skip
        clear = next((i for i, gap in enumerate(gaps) if gap < 0.02), len(gaps))
        print(f"{clear} of {len(tokens)} tokens clear: {rows[-1]['text']!r}")
    checksum = hashlib.sha256(args.gguf.read_bytes()).hexdigest()
    args.out.write_text(json.dumps({"gguf_sha256": checksum, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
