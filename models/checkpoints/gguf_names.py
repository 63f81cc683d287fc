"""GGUF tensor names and layouts against those of Hugging Face, for each architecture.

llama.cpp renames tensors when it converts, and changes some: see conversion/ in github.com/ggml-org/llama.cpp. What is
done there is named here once, and used in both directions.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from ..errors import UnknownArchitectureError

type Layout = Literal["plain", "interleaved_heads", "norm_plus_one", "experts", "gate_up", "transposed"]
"""How a GGUF tensor differs from its Hugging Face original:

plain              not at all
interleaved_heads  rows of each head reordered for llama.cpp's RoPE (Q and K of the llama architecture)
norm_plus_one      Gemma's norm scale, with its 1 added
experts            one tensor [E, ...] for the experts' separate ones; the Hugging Face name has {expert}
gate_up            two tensors, gate and up, for gpt-oss's interleaved one
transposed         last two axes swapped (gpt-oss down_proj)
"""


@dataclass(frozen=True)
class Rule:
    """One Hugging Face tensor (`{layer}`, `{expert}` to be filled) and the GGUF tensors that hold it."""

    hf: str
    gguf: tuple[str, ...]
    layout: Layout = "plain"


@dataclass(frozen=True)
class Architecture:
    """A GGUF architecture: its Hugging Face model types and its tensors."""

    name: str
    model_types: tuple[str, ...]
    rules: tuple[Rule, ...] = field(repr=False)


_TOP: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION: Final = {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
_QK_NORM: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP: Final = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_PRE_NORMS: Final = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA_NORMS: Final = _POST_NORMS | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
_MIXTRAL: Final = {"ffn_gate": "w1", "ffn_down": "w2", "ffn_up": "w3"}
_QWEN_EXPERTS: Final = {"ffn_gate": "gate_proj", "ffn_down": "down_proj", "ffn_up": "up_proj"}


def _rules(*tables: dict[str, str], biases: bool = False, gemma: bool = False, llama: bool = False) -> tuple[Rule, ...]:
    """The rules of tensors that only change name, or change it as their architecture does to all of a kind."""
    layer: dict[str, str] = {}
    for table in tables:
        layer |= table
    top = {name: hf for name, hf in _TOP.items() if not (gemma and name == "output")}  # Gemma's head is always tied
    names = top | {f"blk.{{layer}}.{name}": f"model.layers.{{layer}}.{hf}" for name, hf in layer.items()}
    rules: list[Rule] = []
    for name, hf in names.items():
        layout: Layout = "plain"
        if gemma and name.endswith("norm"):
            layout = "norm_plus_one"
        if llama and name.endswith(("attn_q", "attn_k")):
            layout = "interleaved_heads"
        rules.append(Rule(f"{hf}.weight", (f"{name}.weight",), layout))
        if biases and "norm" not in name and name not in _TOP:
            rules.append(Rule(f"{hf}.bias", (f"{name}.bias",), layout))
    return tuple(rules)


def _experts(table: dict[str, str], hf: str) -> tuple[Rule, ...]:
    """Experts in one tensor each, and (files made before April 2024) in one tensor per expert."""
    name = "model.layers.{layer}." + hf + ".{expert}."
    stacked = (Rule(f"{name}{e}.weight", (f"blk.{{layer}}.{g}_exps.weight",), "experts") for g, e in table.items())
    separate = (Rule(f"{name}{e}.weight", (f"blk.{{layer}}.{g}.{{expert}}.weight",)) for g, e in table.items())
    return (*stacked, *separate)


_GPT_OSS_EXPERTS: Final = (
    Rule(
        "model.layers.{layer}.mlp.experts.gate_up_proj",
        ("blk.{layer}.ffn_gate_exps.weight", "blk.{layer}.ffn_up_exps.weight"),
        "gate_up",
    ),
    Rule(
        "model.layers.{layer}.mlp.experts.gate_up_proj_bias",
        ("blk.{layer}.ffn_gate_exps.bias", "blk.{layer}.ffn_up_exps.bias"),
        "gate_up",
    ),
    Rule("model.layers.{layer}.mlp.experts.down_proj", ("blk.{layer}.ffn_down_exps.weight",), "transposed"),
    Rule("model.layers.{layer}.mlp.experts.down_proj_bias", ("blk.{layer}.ffn_down_exps.bias",)),
    Rule("model.layers.{layer}.self_attn.sinks", ("blk.{layer}.attn_sinks.weight",)),
)

_MOE_GATE: Final = {"ffn_gate_inp": "mlp.gate"}

ARCHITECTURES: Final = {
    entry.name: entry
    for entry in (
        Architecture(
            "llama",
            ("llama", "mistral", "mixtral"),
            (
                *_rules(
                    _ATTENTION, _MLP, _PRE_NORMS, {"ffn_gate_inp": "block_sparse_moe.gate"}, biases=True, llama=True
                ),
                *_experts(_MIXTRAL, "block_sparse_moe.experts"),
            ),
        ),
        Architecture("smollm3", ("smollm3",), _rules(_ATTENTION, _MLP, _PRE_NORMS, biases=True, llama=True)),
        Architecture("qwen2", ("qwen2",), _rules(_ATTENTION, _MLP, _PRE_NORMS, biases=True)),
        Architecture("qwen3", ("qwen3",), _rules(_ATTENTION, _QK_NORM, _MLP, _PRE_NORMS, biases=True)),
        Architecture(
            "qwen3moe",
            ("qwen3_moe",),
            (
                *_rules(_ATTENTION, _QK_NORM, _PRE_NORMS, _MOE_GATE, biases=True),
                *_experts(_QWEN_EXPERTS, "mlp.experts"),
            ),
        ),
        Architecture("gemma2", ("gemma2",), _rules(_ATTENTION, _MLP, _GEMMA_NORMS, gemma=True)),
        Architecture("gemma3", ("gemma3_text", "gemma3"), _rules(_ATTENTION, _QK_NORM, _MLP, _GEMMA_NORMS, gemma=True)),
        Architecture(
            "phi3",
            ("phi3",),
            _rules(
                {"attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj"},
                {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
                _PRE_NORMS,
            ),
        ),
        Architecture("olmo2", ("olmo2",), _rules(_ATTENTION, _QK_NORM, _MLP, _POST_NORMS)),
        Architecture(
            "gpt-oss",
            ("gpt_oss",),
            (
                *_rules(
                    _ATTENTION,
                    {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
                    {"ffn_gate_inp": "mlp.router"},
                    biases=True,
                ),
                *_GPT_OSS_EXPERTS,
            ),
        ),
    )
}

CONFIG_TENSORS: Final = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that are part of the configuration: RoPE factors per frequency."""


def architecture_named(name: object, *, source: str) -> Architecture:
    """The architecture of that GGUF name.

    Raises:
        UnknownArchitectureError: none is known.
    """
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownArchitectureError(
            f"{source}: general.architecture is {name!r}, expected one of {', '.join(ARCHITECTURES)}"
        )
    return found
