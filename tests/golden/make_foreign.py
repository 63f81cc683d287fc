"""Makes foreign/: tiny whole checkpoints that other programs quantised, each by the library whose format it is.

    python tests/golden/make_foreign.py --out DIR [NAME ...]

Without names: all whose libraries are there. Those of bitsandbytes, of compressed-tensors and mxfp4 run in the oracle
environment (constraints-oracle.txt; `scripts/test --oracle` remakes them), those of GPTQ and AWQ in one with gptqmodel
(7.7.0 was used, with torch 2.14.1 and transformers 5.24.0; a CPU is enough):

    python3.11 -m venv gptq && gptq/bin/pip install gptqmodel==7.7.0 transformers==5.24.0

One folder per case: `config.json` and `model.safetensors` as the library writes them, less versions and temporary
folders, and `expected.npz`:

    tokens  int32 [T]
    logits  float32 [T, V]  by `transformers` in fp32 with the weights that the library itself expands its numbers to
    own     float32 [T, V]  where the format rounds activations: by the library's own products, which round them too

The models are those of make.py (weights drawn from a seed) in bfloat16, of the first draw whose logits hardly change
when computed in float64.

transformers writes MXFP4 only with kernels that it fetches, on a GPU. So compressed-tensors packs gpt-oss's experts
here; what is written is read by transformers, whose logits these are.
"""

import argparse
import json
import os
import shutil
import tempfile
import zlib
from contextlib import chdir
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from cases import Case
from make import DRAWS, MAX_NOISE, build, expected, noise, save
from transformers import AutoModelForCausalLM, PreTrainedModel

TOKENS = 24
GROUP = 32
SHAPE = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    rope_parameters={"rope_type": "default", "rope_theta": 100.0},
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a library made: the model with its weights expanded in fp32, and the one that rounds activations."""

    expanded: PreTrainedModel
    own: PreTrainedModel | None = None


class Maker(Protocol):
    """Quantises a model, also saved in the first folder, into the second."""

    def __call__(self, model: PreTrainedModel, source: Path, folder: Path) -> Made: ...


def _read(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", **options
    ).eval()


def _with_weights(folder: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """The architecture of `model` with the floats that `folder` stores, and these matrices."""
    from safetensors.torch import load_file

    dense = type(model)(model.config).float().eval()
    dense.set_attn_implementation("eager")
    state = load_file(folder / "model.safetensors") | weights
    assert weights, folder
    known = dense.state_dict().keys()
    missing = dense.load_state_dict({name: value for name, value in state.items() if name in known}, strict=False)
    # Tied tables are stored once.
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    dense.tie_weights()
    return dense


def bitsandbytes(**options: Any) -> Maker:
    """By transformers, as users do."""

    def made(model: PreTrainedModel, source: Path, folder: Path) -> Made:
        from bitsandbytes import functional, nn
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(**options)
        _read(source, quantization_config=config, dtype=torch.bfloat16).save_pretrained(folder)
        weights: dict[str, torch.Tensor] = {}
        for name, module in _read(folder).named_modules():
            if isinstance(module, nn.Linear8bitLt):
                largest = module.weight.SCB if module.state.SCB is None else module.state.SCB
                weights[f"{name}.weight"] = functional.int8_vectorwise_dequant(module.weight.data, largest)
            elif isinstance(module, nn.Linear4bit):
                state = module.weight.quant_state
                state.dtype = torch.float32  # not rounded to what the model was loaded in
                weights[f"{name}.weight"] = functional.dequantize_4bit(module.weight.data, state)
        return Made(_with_weights(folder, model, weights))

    return made


def compressed_tensors(preset: str, **change: Any) -> Maker:
    """By its own compressor, with scales from the smallest and the largest weight."""

    def made(model: PreTrainedModel, source: Path, folder: Path) -> Made:
        from compressed_tensors.compressors import BaseCompressor, ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
        from compressed_tensors.quantization.utils import calculate_qparams
        from safetensors.torch import load_file

        scheme = preset_name_to_scheme(preset, ["Linear"])
        scheme.weights = scheme.weights.model_copy(update=change)
        quantised = _read(source, dtype=torch.bfloat16)
        apply_quantization_config(quantised, QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"]))
        for module in quantised.modules():
            if getattr(module, "quantization_scheme", None) is not None:
                weight = module.weight.detach().float()
                grouped = weight.reshape(len(weight), -1, scheme.weights.group_size or weight.shape[1])
                scale, zero = calculate_qparams(grouped.amin(dim=2), grouped.amax(dim=2), scheme.weights)
                module.weight_scale.data.copy_(scale)
                module.weight_zero_point.data.copy_(zero)
        compressor = ModelCompressor.from_pretrained_model(quantised)
        compressor.compress_model(quantised)
        quantised.save_pretrained(folder)
        compressor.update_config(folder)
        library: Any = BaseCompressor.get_value_from_registry(compressor.quantization_config.format)
        stored, weights = load_file(folder / "model.safetensors"), dict[str, torch.Tensor]()
        for name in [name.removesuffix("weight_scale") for name in stored if name.endswith("weight_scale")]:
            parts = {key.removeprefix(name): value for key, value in stored.items() if key.startswith(name)}
            parts["weight_scale"] = parts["weight_scale"].float()  # or the product is rounded as they are
            weights[f"{name}weight"] = library.decompress(parts, scheme)["weight"]
        expanded = _with_weights(folder, model, weights)
        return Made(expanded, None if scheme.input_activations is None else _read(folder, dtype=torch.float32))

    return made


def mxfp4(model: PreTrainedModel, source: Path, folder: Path) -> Made:
    """Experts of gpt-oss; see the module."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file, save_file
    from transformers import Mxfp4Config

    scheme = preset_name_to_scheme("MXFP4A16", ["Linear"])
    compressor: Any = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
    state = load_file(source / "model.safetensors")
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales = [], []
        for weight in state.pop(name).float().swapaxes(1, 2):  # [R, C]
            grouped = weight.reshape(len(weight), -1, 32)
            scale, zero = calculate_qparams(grouped.amin(dim=2), grouped.amax(dim=2), scheme.weights)
            packed = compressor.compress({"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
            blocks.append(packed["weight_packed"].reshape(*scale.shape, 16))
            scales.append(packed["weight_scale"])
        state |= {f"{name}_blocks": torch.stack(blocks), f"{name}_scales": torch.stack(scales)}
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = Mxfp4Config(modules_to_not_convert=["self_attn", "router", "lm_head"]).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    return Made(_read(folder, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)))


def gptqmodel(**options: Any) -> Maker:
    """GPTQ and AWQ, calibrated on random tokens."""

    def made(model: PreTrainedModel, source: Path, folder: Path) -> Made:
        os.cpu_count = lambda: 4  # its pools of threads want more than one
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        _tokenizer(source)
        drawn = torch.randint(4, SHAPE["vocab_size"], (16, 48), generator=torch.Generator().manual_seed(3))
        texts = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in drawn.tolist()]
        config = QuantizeConfig(group_size=GROUP, **options)
        with chdir(source):  # where it leaves its logs
            quantiser: Any = GPTQModel.load(str(source), config, device="cpu", dtype=torch.float16)
            quantiser.quantize(texts, batch_size=4)
            quantiser.save(str(folder))
        awq = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "awq"
        kernel = BACKEND.TORCH_AWQ if awq else BACKEND.TORCH
        loaded: Any = GPTQModel.load(str(folder), backend=kernel, device="cpu", dtype=torch.float16)
        weights: dict[str, torch.Tensor] = {}
        for name, module in loaded.model.named_modules():
            if not hasattr(module, "qweight"):
                continue
            scales = module.scales.float()  # what they mean, not how half precision rounds the product
            if awq:
                weight = dequantize_gemm(module.qweight, module.qzeros, scales, 4, GROUP)
            else:
                module.scales = scales
                weight = module.dequantize_weight()
            weights[f"{name}.weight"] = weight.T.contiguous()
        return Made(_with_weights(folder, model, weights))

    return made


def _tokenizer(folder: Path) -> None:
    """A tokenizer with a word for each token, which gptqmodel wants to see."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(SHAPE["vocab_size"])}, unk_token="t0"))
    special = dict(unk_token="t0", bos_token="t1", eos_token="t2", pad_token="t3")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


LLAMA = Case("LlamaConfig", SHAPE)
TIED = Case("Qwen3Config", SHAPE | dict(tie_word_embeddings=True))
BIASED = Case("Qwen2Config", SHAPE | dict(tie_word_embeddings=True))
BLOCKS = Case("LlamaConfig", SHAPE | dict(intermediate_size=128))
BIASED_BLOCKS = Case("Qwen2Config", SHAPE | dict(intermediate_size=128, tie_word_embeddings=True))
"""Rows of whole blocks of 64: bitsandbytes packs 4 bits in blocks that cross rows, but expands such with the scales of
others on a CPU (0.50.2)."""
WIDE_HEADS = Case("LlamaConfig", SHAPE | dict(head_dim=32, intermediate_size=128))
"""AWQ's search takes 64 outputs at a time."""
GPT_OSS = Case("GptOssConfig", SHAPE | dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=32,
    sliding_window=8, layer_types=["sliding_attention", "full_attention"]))  # fmt: skip

FOREIGN: dict[str, tuple[Case, Maker]] = {
    "bitsandbytes-int8": (BIASED, bitsandbytes(load_in_8bit=True)),
    "bitsandbytes-nf4": (
        BLOCKS, bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    ),
    "bitsandbytes-fp4": (BIASED_BLOCKS, bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "compressed-tensors-int8": (TIED, compressed_tensors("W8A8")),
    "compressed-tensors-int8-weight": (BIASED, compressed_tensors("W8A16", group_size=GROUP)),
    "compressed-tensors-int4": (
        LLAMA, compressed_tensors("W4A16", group_size=GROUP, symmetric=False)
    ),
    "compressed-tensors-fp8": (TIED, compressed_tensors("FP8_DYNAMIC")),
    "gptq-4": (BIASED, gptqmodel(bits=4, sym=True, desc_act=False)),
    "gptq-4-act": (TIED, gptqmodel(bits=4, sym=False, desc_act=True, act_group_aware=False)),
    "gptq-8": (LLAMA, gptqmodel(bits=8, sym=False, desc_act=False)),
    "awq": (WIDE_HEADS, gptqmodel(bits=4, quant_method="awq", format="gemm")),
    "mxfp4": (GPT_OSS, mxfp4),
}  # fmt: skip


def make(name: str, out: Path) -> None:
    """Make one case under `out`."""
    case, maker = FOREIGN[name]
    folder = out / name
    tokens = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).integers(4, SHAPE["vocab_size"], TOKENS)
    for draw in range(DRAWS):
        model = build(case, 1000 * draw)
        shutil.rmtree(folder, ignore_errors=True)
        with tempfile.TemporaryDirectory() as source:
            save(model, case, Path(source) / "model")
            made = maker(model, Path(source) / "model", folder)
            result = expected(made.expanded, tokens.tolist(), 0)
        if result["logits"].std() >= 1 and (error := noise(made.expanded, result)) <= MAX_NOISE:
            break
    else:
        raise SystemExit(f"{name}: no quiet draw in {DRAWS}")
    _tidy(folder)
    del result["prompt_len"]
    if made.own is not None:
        result["own"] = expected(made.own, tokens.tolist(), 0)["logits"]
    np.savez_compressed(folder / "expected.npz", **result)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1024
    off = "" if made.own is None else f"  rounding: {np.abs(result['own'] - result['logits']).max():.2f}"
    std = result["logits"].std()
    print(f"{name:32} draw {draw:2}  std {std:.2f}  noise {error:.1e}{off}  {size:.0f} KiB", flush=True)


def _tidy(folder: Path) -> None:
    """Leaves what a checkpoint needs, and nothing that is another the next time."""
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    path = folder / "config.json"
    path.chmod(0o644)
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads(path.read_text())
    config.pop("transformers_version", None)
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    of_gptqmodel = find_spec("gptqmodel") is not None
    here = [name for name in FOREIGN if name.startswith(("gptq", "awq")) == of_gptqmodel]
    for name in args.names or here:
        make(name, args.out.resolve())


if __name__ == "__main__":
    main()
