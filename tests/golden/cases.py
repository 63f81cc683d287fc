"""The golden checkpoints: what is made of each family. Read by make.py, in the oracle environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GREEDY = 32


@dataclass(frozen=True)
class Case:
    """One golden model: a `transformers` config class, its arguments and how it is stored."""

    config: str
    args: Mapping[str, Any]
    greedy: int = GREEDY
    shards: bool = False
    # config.json rewritten in the older style: keys to drop, keys to set.
    published: Mapping[str, Any] | None = None
    gains: Mapping[str, float] = field(default_factory=dict)  # extra factor for tensors whose name holds the key


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _theta(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _llama(rope: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    base = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        rope_parameters=dict(rope or _theta(100.0)),
    )
    return base | args


CASES: dict[str, Case] = {
    "opt": Case(
        "OPTConfig",
        dict(vocab_size=101, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=3, ffn_dim=72,
             max_position_embeddings=100, num_attention_heads=4, activation_function="relu"),
        published={"dropout": 0.1, "init_std": 0.02, "torch_dtype": "float16", "prefix": "</s>",
                   "enable_bias": None, "layer_norm_elementwise_affine": None, "tie_word_embeddings": None},
    ),
    "opt_350m": Case(
        "OPTConfig",
        dict(vocab_size=101, hidden_size=32, word_embed_proj_dim=20, num_hidden_layers=2, ffn_dim=60,
             max_position_embeddings=96, num_attention_heads=2, do_layer_norm_before=False),
    ),
    "opt_gelu": Case(
        "OPTConfig",
        dict(vocab_size=101, hidden_size=36, word_embed_proj_dim=36, num_hidden_layers=2, ffn_dim=60,
             max_position_embeddings=96, num_attention_heads=3, activation_function="gelu", enable_bias=False),
    ),
    "llama2": Case(
        "LlamaConfig",
        _llama(hidden_size=36, num_attention_heads=3, num_key_value_heads=3, intermediate_size=50, num_hidden_layers=2,
               rope_parameters=_theta(10000.0)),
        shards=True,
        published={"rope_parameters": None, "rope_theta": None, "rope_scaling": ..., "head_dim": None,
                   "mlp_bias": None, "attention_bias": None, "pretraining_tp": 1},
    ),
    "llama31": Case("LlamaConfig", _llama(LLAMA3, head_dim=12)),
    "llama32": Case(
        "LlamaConfig",
        _llama(dict(LLAMA3, factor=32.0), hidden_size=30, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
               tie_word_embeddings=True, num_hidden_layers=4),
        published={"rope_parameters": None, "rope_theta": 1000.0,
                   "rope_scaling": {k: v for k, v in dict(LLAMA3, factor=32.0).items() if k != "rope_theta"}},
    ),
    "llama_bias": Case("LlamaConfig", _llama(attention_bias=True, mlp_bias=True, num_hidden_layers=2)),
    "llama_linear": Case(
        "LlamaConfig", _llama({"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}, max_position_embeddings=32)
    ),
    "llama_dynamic": Case(
        "LlamaConfig",
        _llama({"rope_type": "dynamic", "rope_theta": 100.0, "factor": 3.0}, max_position_embeddings=16),
        greedy=0,
    ),
    "llama_yarn": Case(
        "LlamaConfig",
        _llama({"rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "original_max_position_embeddings": 16},
               head_dim=16),
        published={"rope_parameters": None, "rope_theta": 1000.0,
                   "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}},
    ),
    "smollm2": Case(
        "LlamaConfig",
        _llama(hidden_size=36, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
               rope_parameters=_theta(100000.0), intermediate_size=60),
        published={"rope_parameters": None, "rope_theta": 100000, "rope_scaling": ..., "rope_interleaved": False,
                   "is_llama_config": True, "pretraining_tp": 1, "head_dim": None},
    ),
    "smollm3": Case(
        "SmolLM3Config",
        _llama(num_hidden_layers=5, no_rope_layer_interval=4, tie_word_embeddings=True, pad_token_id=2,
               rope_parameters=_theta(500.0)),
    ),
    "mistral": Case(
        "MistralConfig", _llama(sliding_window=7, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    ),
    "qwen2": Case(
        "Qwen2Config",
        _llama(num_hidden_layers=4, use_sliding_window=True, sliding_window=9, max_window_layers=2,
               num_attention_heads=2, num_key_value_heads=1),
    ),
    "qwen25": Case(
        "Qwen2Config",
        _llama(hidden_size=36, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
               num_hidden_layers=2, rope_parameters=_theta(1000000.0)),
        published={"rope_parameters": None, "rope_theta": 1000000.0, "layer_types": None, "use_sliding_window": False,
                   "sliding_window": 32, "max_window_layers": 1},
    ),
    "qwen3": Case("Qwen3Config", _llama(head_dim=14, tie_word_embeddings=True, num_attention_heads=3,
                                        num_key_value_heads=1)),
    "qwen3_moe": Case(
        "Qwen3MoeConfig",
        _llama(head_dim=10, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=18, norm_topk_prob=True,
               num_hidden_layers=2),
    ),
    "qwen3_moe_mixed": Case(
        "Qwen3MoeConfig",
        _llama(head_dim=10, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=False,
               intermediate_size=28,
               num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[1]),
        published={"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": ..., "layer_types": None,
                   "num_local_experts": None, "num_experts": 5, "use_sliding_window": False, "sliding_window": ...,
                   "max_window_layers": 6},
    ),
    "mixtral": Case(
        "MixtralConfig",
        _llama(num_local_experts=4, num_experts_per_tok=2, intermediate_size=22, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=4),
    ),
    "gemma2": Case(
        "Gemma2Config",
        dict(vocab_size=99, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=12, max_position_embeddings=128, sliding_window=9,
             query_pre_attn_scalar=7, attn_logit_softcapping=2.5, final_logit_softcapping=12.0,
             rope_parameters=_theta(300.0)),
        published={"rope_parameters": None, "rope_theta": 300.0, "layer_types": None, "hidden_act": "gelu_pytorch_tanh",
                   "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": None,
                   "tie_word_embeddings": None, "cache_implementation": "hybrid"},
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        dict(vocab_size=99, hidden_size=30, intermediate_size=40, num_hidden_layers=8, num_attention_heads=3,
             num_key_value_heads=1, head_dim=8, max_position_embeddings=128, sliding_window=8, query_pre_attn_scalar=13,
             rope_parameters={"sliding_attention": _theta(50.0),
                              "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0}}),
    ),
    "gemma3_published": Case(
        "Gemma3TextConfig",
        dict(vocab_size=99, hidden_size=32, intermediate_size=30, num_hidden_layers=7, num_attention_heads=4,
             num_key_value_heads=2, head_dim=10, max_position_embeddings=128, sliding_window=8,
             query_pre_attn_scalar=13,
             rope_parameters={"sliding_attention": _theta(50.0),
                              "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0}}),
        published={"rope_parameters": None, "rope_theta": 2000.0, "rope_local_base_freq": 50.0, "layer_types": None,
                   "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 6,
                   "_sliding_window_pattern": None,
                   "tie_word_embeddings": None, "use_bidirectional_attention": None,
                   "attn_logit_softcapping": ..., "final_logit_softcapping": ...},
    ),
    "phi3": Case(
        "Phi3Config",
        _llama(pad_token_id=3, original_max_position_embeddings=128, sliding_window=11,
               rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.75}),
    ),
    "phi3_longrope": Case(
        "Phi3Config",
        _llama(pad_token_id=3, max_position_embeddings=80, original_max_position_embeddings=20, hidden_size=36,
               num_attention_heads=3, num_key_value_heads=3, num_hidden_layers=2, intermediate_size=40,
               rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 1.0,
                                "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                                "long_factor": [1.5, 2.0, 2.7, 3.5, 5.0, 7.0],
                                "original_max_position_embeddings": 20}),
        published={"rope_parameters": None, "rope_theta": 100.0,
                   "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                                    "long_factor": [1.5, 2.0, 2.7, 3.5, 5.0, 7.0]}},
    ),
    "olmo2": Case("Olmo2Config", _llama(hidden_size=36, num_attention_heads=6, num_key_value_heads=2)),
    "granite": Case(
        "GraniteConfig",
        _llama(embedding_multiplier=1.7, residual_multiplier=0.6, attention_multiplier=0.21, logits_scaling=0.8,
               tie_word_embeddings=True),
    ),
    "gpt_oss": Case(
        "GptOssConfig",
        _llama(head_dim=12, num_local_experts=5, num_experts_per_tok=2, intermediate_size=14, sliding_window=8,
               num_hidden_layers=4, swiglu_limit=1.5,
               rope_parameters={"rope_type": "yarn", "rope_theta": 2000.0, "factor": 4.0, "beta_fast": 1.5,
                                "beta_slow": 0.25, "truncate": False, "original_max_position_embeddings": 32}),
        published={"rope_parameters": None, "rope_theta": 2000.0, "swiglu_alpha": None, "experts_per_token": 2,
                   "initial_context_length": 32,
                   "rope_scaling": {"beta_fast": 1.5, "beta_slow": 0.25, "factor": 4.0,
                                    "original_max_position_embeddings": 32, "rope_type": "yarn", "truncate": False}},
    ),
    "cohere": Case(
        "CohereConfig",
        dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, logit_scale=2.5, bos_token_id=1, eos_token_id=2,
             rope_parameters=_theta(200.0)),
        gains={"embed_tokens": 0.5},
    ),
    "qwen2_moe": Case(
        "Qwen2MoeConfig",
        _llama(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=14, shared_expert_intermediate_size=22,
               norm_topk_prob=False, num_hidden_layers=2),
    ),
    "glm4_moe": Case(
        "Glm4MoeConfig",
        _llama(head_dim=12, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
               first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True, use_qk_norm=True,
               attention_bias=True,
               rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}),
    ),
}  # fmt: skip
