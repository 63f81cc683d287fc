"""Small checkpoints, made by the formats' own libraries rather than by ours."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

LAYERS, D, HEADS, KV_HEADS, H, F, V = 2, 256, 4, 2, 64, 512, 288  # rows of 256 values, for K-quants


@pytest.fixture(scope="session")
def golden() -> Path:
    """Tiny checkpoints of every family, written by transformers."""
    return Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    """config.json of a llama with two layers and a vocabulary of bytes."""
    return {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": H,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def tiny_tensors() -> dict[str, np.ndarray]:
    """Its tensors under Hugging Face names, float32, all different."""
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (HEADS * H, D),
            f"{layer}self_attn.k_proj.weight": (KV_HEADS * H, D),
            f"{layer}self_attn.v_proj.weight": (KV_HEADS * H, D),
            f"{layer}self_attn.o_proj.weight": (D, HEADS * H),
            f"{layer}mlp.gate_proj.weight": (F, D),
            f"{layer}mlp.up_proj.weight": (F, D),
            f"{layer}mlp.down_proj.weight": (D, F),
            f"{layer}input_layernorm.weight": (D,),
            f"{layer}post_attention_layernorm.weight": (D,),
        }
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (V, D)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


@pytest.fixture
def tiny_folder(
    tmp_path: Path, tiny_config: dict[str, Any], tiny_tensors: dict[str, np.ndarray]
) -> Callable[..., Path]:
    """Writes a Hugging Face folder: `change` replaces tensors (None drops one), `shards` cuts it in several files."""

    def make(
        name: str = "folder",
        *,
        config: Mapping[str, Any] | None = None,
        change: Mapping[str, np.ndarray | None] | None = None,
        shards: int = 1,
        dtype: Any = np.float32,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**tiny_config, **(config or {})}))
        tensors = {name: values.astype(dtype) for name, values in tiny_tensors.items()} | dict(change or {})
        kept = {name: np.ascontiguousarray(values) for name, values in tensors.items() if values is not None}
        names = sorted(kept)
        if shards == 1:
            save_file(kept, folder / "model.safetensors")
            return folder
        weight_map: dict[str, str] = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({name: kept[name] for name in names[i::shards]}, folder / file)
            weight_map |= dict.fromkeys(names[i::shards], file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return make


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to Q and K, written here once more, on its own."""
    out = np.empty_like(rows)
    width = len(rows) // heads
    for head in range(heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = rows[head * width + i]
            out[head * width + 2 * i + 1] = rows[head * width + width // 2 + i]
    return out


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    _, _, layer, *middle, last = name.split(".")
    return f"blk.{layer}.{_NAMES['.'.join(middle)]}.{last}"


@pytest.fixture
def tiny_gguf(tmp_path: Path, tiny_tensors: dict[str, np.ndarray]) -> Callable[..., Path]:
    """Writes the same model with gguf.GGUFWriter. `kind` is the matrices' type; `raw` gives bytes for kinds that the
    package cannot quantise; `edit` gets the writer before it writes."""

    def make(
        name: str = "tiny.gguf",
        *,
        kind: Kind = Kind.F32,
        raw: Callable[[tuple[int, ...]], np.ndarray] | None = None,
        edit: Callable[[gguf.GGUFWriter], None] | None = None,
        tokenizer: bool = True,
        leave_out: tuple[str, ...] = (),
    ) -> Path:
        path = tmp_path / name
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(LAYERS)
        writer.add_context_length(64)
        writer.add_embedding_length(D)
        writer.add_feed_forward_length(F)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(H)
        writer.add_vocab_size(V)
        if tokenizer:
            _add_vocabulary(writer)
        for hf, values in tiny_tensors.items():
            stored = _gguf_name(hf)
            if stored in leave_out:
                continue
            if ".attn_q." in stored or ".attn_k." in stored:
                values = _interleaved(values, HEADS if ".attn_q." in stored else KV_HEADS)
            if values.ndim == 1 or kind == Kind.F32:
                writer.add_tensor(stored, values)
            elif raw is not None:
                writer.add_tensor(stored, raw(values.shape), raw_dtype=kind)
            elif kind == Kind.F16:
                writer.add_tensor(stored, values.astype(np.float16))
            else:
                writer.add_tensor(stored, gguf.quantize(values, kind), raw_dtype=kind)
        if edit is not None:
            edit(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def _byte_alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(rest))]


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *_byte_alphabet(), "he", "ll", "hell", "hello"]
    types = [3] * len(special) + [1] * (len(tokens) - len(special))
    types += [5] * (V - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), V)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


@pytest.fixture
def as_bfloat16() -> Callable[[np.ndarray], np.ndarray]:
    """float32 to bfloat16 and back."""
    return lambda values: values.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.fixture
def replaced() -> Callable[[Path, bytes], Any]:
    """Puts other bytes into a file for the length of a block."""

    @contextmanager
    def swap(path: Path, content: bytes) -> Iterator[None]:
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            yield
        finally:
            path.write_bytes(before)

    return swap
