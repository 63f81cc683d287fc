"""What rows call their precisions, as an engine is told to serve in them."""

from collections.abc import Mapping
from dataclasses import dataclass

from .rows import Row


@dataclass(frozen=True)
class Precision:
    """A pair of `--dtype` and `--quantize`."""

    dtype: str
    quantize: str | None = None


SERVED: Mapping[tuple[str, str], Precision] = {
    ("fp32", "fp32"): Precision("float32"),
    ("bf16", "bf16"): Precision("bfloat16"),
    ("int8", "int8"): Precision("bfloat16", "int8"),
    ("int8", "bf16"): Precision("bfloat16", "int8-weight"),
    ("int4", "bf16"): Precision("bfloat16", "int4"),
    ("fp8", "fp8"): Precision("bfloat16", "fp8"),
    ("fp8", "bf16"): Precision("bfloat16", "fp8-weight"),
}
"""By the precisions of weights and of activations; other pairs are counted and not compiled."""
KV_DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}


def precision(row: Row) -> Precision:
    """Of a row whose precisions are SERVED."""
    return SERVED[row["weights"], row["activations"]]
