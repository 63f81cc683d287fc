"""Makes the files of quantised/: one matrix in every format, by the library whose format it is, and what that library
makes of it again. Needs torch, compressed-tensors (0.17.0 was used) and bitsandbytes (0.50.2); for GPTQ and AWQ also
transformers, accelerate and, unpacked into one folder, auto-gptq (its wheel, 0.7.1) and AutoAWQ (autoawq-0.2.9.tar.gz).
Of these two one module each is used: to be imported whole they want CUDA, or other libraries as they were in 2024.

    python tests/golden/make_quantised.py [compressed_tensors] [bitsandbytes] [gptq] [awq] [--unpacked FOLDER]
"""

import argparse
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "quantised"
ROWS, COLUMNS = 24, 64
MORE_ROWS = 32
"""GPTQ and AWQ pack zero points of whole words of outputs."""


def weight(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(0))


def compressed_tensors() -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    token = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    fp8_token = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    cases: dict[str, tuple[str, QuantizationArgs, Any]] = {
        "int8": ("int-quantized", QuantizationArgs(num_bits=8, strategy="channel"), token),
        "fp8": ("float-quantized", QuantizationArgs(num_bits=8, type="float", strategy="channel"), fp8_token),
        "int4": ("pack-quantized", QuantizationArgs(num_bits=4, strategy="group", group_size=16), None),
        "int4-asymmetric": (
            "pack-quantized",
            QuantizationArgs(num_bits=4, strategy="group", group_size=16, symmetric=False),
            None,
        ),
        "int8-weight": ("pack-quantized", QuantizationArgs(num_bits=8, strategy="channel"), None),
    }
    for name, (form, args, inputs) in cases.items():
        scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format=form)
        grouped = weight().reshape(ROWS, -1, args.group_size or COLUMNS)
        scale, zero = calculate_qparams(grouped.amin(dim=2), grouped.amax(dim=2), args)
        state = {"weight": weight(), "weight_scale": scale, "weight_zero_point": zero}
        compressor: Any = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(dict(state), scheme)
        meant = compressor.decompress(dict(stored), scheme)["weight"]
        told = {"quant_method": "compressed-tensors", "format": form}
        told["config_groups"] = {"group_0": scheme.model_dump(mode="json")}
        write(f"compressed-tensors-{name}", stored, meant, told)


def bitsandbytes() -> None:
    import bitsandbytes as bnb
    from bitsandbytes import functional

    numbers, largest, _ = functional.int8_vectorwise_quant(weight().half())
    meant = numbers.float() * largest[:, None] / 127
    write("bitsandbytes-int8", {"weight": numbers, "SCB": largest}, meant, {"quant_method": "bitsandbytes"})
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            big = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
            packed, state = functional.quantize_4bit(big, quant_type=kind, compress_statistics=nested)
            stored = {"weight": packed}
            stored |= {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
            meant = functional.dequantize_4bit(packed, state)
            write(f"bitsandbytes-{kind}{'-nested' if nested else ''}", stored, meant, {"quant_method": "bitsandbytes"})
    print(bnb.__version__)


def affine(group: int, bits: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [MORE_ROWS, groups] from the smallest to the largest weight of each group."""
    grouped = weight(MORE_ROWS).reshape(MORE_ROWS, -1, group)
    low, high = grouped.amin(dim=2).clamp(max=0), grouped.amax(dim=2).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return scale, torch.round(-low / scale).clamp(least, 2**bits - 1)


def linear() -> torch.nn.Linear:
    made = torch.nn.Linear(COLUMNS, MORE_ROWS, bias=False)
    made.weight.data = weight(MORE_ROWS)
    return made


def module(unpacked: Path, path: str) -> Any:
    """One module of a package, whose parents are not run."""
    *parents, _ = path.split(".")
    root = next(unpacked.rglob(f"{parents[0]}/__init__.py")).parent.parent
    for count in range(1, len(parents) + 1):
        package = types.ModuleType(".".join(parents[:count]))
        package.__path__ = [str(root.joinpath(*parents[:count]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(path)


def gptq(unpacked: Path) -> None:
    made = module(unpacked, "auto_gptq.nn_modules.qlinear.qlinear_cuda")
    for bits in (2, 4, 8):
        for act_order in (False, True):
            group = 16
            # Its zero points are stored less one.
            scale, zero = affine(group, bits, 1)
            g_idx = torch.arange(COLUMNS) // group
            if act_order:
                g_idx = g_idx[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(2))]
            layer = made.QuantLinear(bits, group, COLUMNS, MORE_ROWS, bias=False)
            layer.pack(linear(), scale, zero, g_idx.int())
            stored = {name: value.clone() for name, value in layer.state_dict().items()}
            stored["scales"] = stored["scales"].half()  # exactly; so do models that are in half precision
            layer.scales = layer.scales.float()  # what it means, not how half precision rounds that
            meant = layer(torch.eye(COLUMNS)).T
            told = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": False}
            write(f"gptq-{bits}{'-act' if act_order else ''}", stored, meant, told)


def awq(unpacked: Path) -> None:
    made = module(unpacked, "awq.modules.linear.gemm")
    scale, zero = affine(16, 4, 0)
    layer = made.WQLinear_GEMM.from_linear(linear(), 4, 16, scales=scale.T.contiguous(), zeros=zero.T.contiguous())
    stored = dict(layer.state_dict())
    meant = made.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 16).T
    told = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    write("awq-gemm", stored, meant, told)


def write(name: str, stored: dict[str, Any], meant: torch.Tensor, config: dict[str, Any]) -> None:
    tensors = {f"stored.{key}": value.detach().contiguous() for key, value in stored.items() if value is not None}
    tensors["meant"] = meant.detach().float().contiguous()
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, {key: (str(value.dtype), tuple(value.shape)) for key, value in tensors.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["compressed_tensors", "bitsandbytes", "gptq", "awq"])
    parser.add_argument("--unpacked", type=Path)
    given = parser.parse_args()
    makers: dict[str, Any] = {"compressed_tensors": compressed_tensors, "bitsandbytes": bitsandbytes}
    makers |= {"gptq": lambda: gptq(given.unpacked), "awq": lambda: awq(given.unpacked)}
    for each in given.names:
        makers[each]()
