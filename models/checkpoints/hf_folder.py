"""A Hugging Face folder: config.json, safetensors, tokenizer files."""

import shutil
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ..config import ModelConfig
from ..decoder import Weights
from ..errors import UnsupportedQuantizationError
from ..families import family_for
from ..tokenizer import Tokenizer
from .assemble import load_named
from .base import Made, NamedTensors, OnBytes, Place
from .bitsandbytes import bitsandbytes_linears
from .byte_files import Location, ReadCount
from .compressed_tensors import compressed_linears, rounds_activations
from .gptq import gptq_linears
from .json_file import read_object
from .kept import Keeper
from .mxfp4 import Mxfp4Tensors
from .remote import local_copy
from .safetensors import FLOATS, SafetensorsTensors, open_folder
from .stored_linears import LinearTensors

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


_METHODS: Final = {
    "compressed-tensors": compressed_linears,
    "gptq": gptq_linears,
    "awq": gptq_linears,
    "bitsandbytes": bitsandbytes_linears,
}
"""How quantised weights are found, by quantization_config.quant_method."""


class HFFolder:
    """What `save_pretrained()` writes and the hub serves."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.reads = ReadCount()
        self.hf_config = read_object(path / "config.json")
        family_for(self.hf_config, source=str(path / "config.json"))  # before a word about the weights
        self._stored = open_folder(path, self.reads)
        self._check_quantization()

    def _check_quantization(self) -> None:
        quantization = self.hf_config.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method not in (None, "mxfp4", *_METHODS):
            raise UnsupportedQuantizationError(
                f"{self.path / 'config.json'}: quantization_config.quant_method: found {str(method)[:60]!r}, expected "
                f"{', '.join(map(repr, _METHODS))}, 'mxfp4' or none; fetch the model in bf16, or as GGUF"
            )

    @property
    def quantized(self) -> str | None:
        """How its weights are quantised; None if they are not."""
        quantization = self.hf_config.get("quantization_config")
        return quantization.get("quant_method") if isinstance(quantization, dict) else None

    @property
    def generation_config(self) -> dict[str, Any]:
        file = self.path / "generation_config.json"
        found = read_object(file) if file.is_file() else {}
        if "eos_token_id" not in found and self.hf_config.get("eos_token_id") is not None:
            found["eos_token_id"] = self.hf_config["eos_token_id"]
        return found

    @cached_property
    def tensors(self) -> NamedTensors:
        """The tensors under their names; what is quantised as the floating-point tensors that it stands for."""
        if self.quantized in _METHODS:
            quantization = self.hf_config["quantization_config"]
            return _METHODS[self.quantized](self._stored, quantization, self.path / "config.json")
        blocks = any(name.endswith("_blocks") for name in self._stored.infos)
        return Mxfp4Tensors(self._stored) if blocks else self._stored

    @property
    def stored_dtype(self) -> jnp.dtype:
        return jnp.dtype(jnp.float32) if self.quantized in _METHODS else most_stored(self._stored)

    def load_weights(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        made: Made | None = None,
        keep: Collection[str] = (),
        progress: OnBytes | None = None,
    ) -> Weights:
        return load_named(
            self.tensors,
            config,
            dtype=dtype,
            source=str(self.path),
            place=place,
            made=made,
            keep=None if self.keeper is None else self.keeper.of(keep),
            progress=progress,
        )

    @cached_property
    def keeper(self) -> Keeper | None:
        """What makes leaves of the numbers that are stored; None where weights are stored as floats."""
        tensors = self.tensors
        if isinstance(tensors, Mxfp4Tensors):
            return Keeper(tensors, tensors)
        if not isinstance(tensors, LinearTensors):
            return None
        return Keeper(tensors, tensors, activations=rounds_activations(self.hf_config["quantization_config"]))

    def tokenizer(self) -> Tokenizer:
        with local_copy(self.path, (*TOKENIZER_FILES, "config.json", "generation_config.json")) as folder:
            return Tokenizer.from_folder(folder)

    def copy_tokenizer(self, folder: Path) -> None:
        with local_copy(self.path, TOKENIZER_FILES) as source:
            copy_tokenizer_files(source, folder)


def copy_tokenizer_files(source: Path, destination: Path) -> None:
    """Copy whatever tokenizer files there are."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    if (source / "additional_chat_templates").is_dir():
        shutil.copytree(source / "additional_chat_templates", destination / "additional_chat_templates")


def most_stored(tensors: SafetensorsTensors) -> jnp.dtype:
    """The type of most bytes among float32, float16 and bfloat16; bfloat16 for MXFP4, whose values all fit it."""
    sizes: dict[np.dtype, int] = {}
    for name, info in tensors.infos.items():
        dtype = FLOATS.get("BF16" if info.dtype == "U8" else info.dtype)
        if dtype is not None:
            sizes[dtype] = sizes.get(dtype, 0) + tensors.nbytes(name)
    most = max(sizes, key=lambda dtype: sizes[dtype], default=np.dtype(np.float32))
    return jnp.dtype(np.float32 if most == np.float64 else most)
