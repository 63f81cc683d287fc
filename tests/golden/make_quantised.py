"""Makes the files of quantised/: one matrix in every format, by the library whose format it is, and what that library
makes of it again. Needs torch, compressed-tensors (0.17.0 was used) and bitsandbytes (0.50.2).

    python tests/golden/make_quantised.py
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "quantised"
ROWS, COLUMNS = 24, 64


def weight() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


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


def write(name: str, stored: dict[str, Any], meant: torch.Tensor, config: dict[str, Any]) -> None:
    tensors = {f"stored.{key}": value.detach().contiguous() for key, value in stored.items() if value is not None}
    tensors["meant"] = meant.detach().float().contiguous()
    save_file(tensors, HERE / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, {key: (str(value.dtype), tuple(value.shape)) for key, value in tensors.items()})


if __name__ == "__main__":
    compressed_tensors()
    bitsandbytes()
