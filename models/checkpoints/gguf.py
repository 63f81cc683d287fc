"""GGUF files: one file, or the parts of a split one."""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType as Kind
from jax.typing import DTypeLike

from ..config import ModelConfig
from ..decoder import Weights
from ..tokenizer import Tokenizer
from .assemble import load_named
from .base import Made, OnBytes, Place
from .byte_files import Location, ReadCount
from .gguf_config import config_from_gguf
from .gguf_file import PLAIN, GGUFFile, can_dequantize
from .gguf_names import CONFIG_TENSORS
from .gguf_tensors import GGUFTensors
from .kept import Keeper


class GGUFCheckpoint:
    """A model in a GGUF file: metadata gives the configuration and the tokenizer."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.reads = ReadCount()
        self._file = GGUFFile(path, self.reads)
        tensors = self._file.tensors
        factors = {
            name: [float(x) for x in self._file.read_rows(name, 0, tensors[name].shape[0])]
            for name in sorted(CONFIG_TENSORS & tensors.keys())
            if len(tensors[name].shape) == 1 and can_dequantize(tensors[name].type)
        }
        self.hf_config = config_from_gguf(
            self._file.metadata,
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            rope_factors=factors,
            source=str(path),
        )
        self.reads.clear()  # those factors are no weights

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Every key of the file, with Python values."""
        return self._file.metadata

    @property
    def generation_config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ends = [self.hf_config["eos_token_id"]] if "eos_token_id" in self.hf_config else []
        if self._has_tokenizer:
            # The vocabulary tells more: a file names one end, and models have one of a text and one of a turn.
            ends += sorted(self.tokenizer().eos_ids - set(ends))
        if ends:
            found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        for key in ("bos_token_id", "pad_token_id"):
            if key in self.hf_config:
                found[key] = self.hf_config[key]
        return found

    @property
    def stored_dtype(self) -> jnp.dtype:
        sizes: dict[Kind, int] = {}
        for tensor in self._file.tensors.values():
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
        most = max(sizes, key=lambda kind: sizes[kind], default=Kind.F32)
        return jnp.dtype(PLAIN[most] if most in (Kind.F16, Kind.BF16) else np.float32)

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
        try:
            return load_named(
                self.tensors,
                config,
                dtype=dtype,
                source=str(self.path),
                place=place,
                made=made,
                keep=self.keeper.of(keep),
                progress=progress,
            )
        finally:
            self._file.let_go()

    @cached_property
    def tensors(self) -> GGUFTensors:
        """The tensors under their Hugging Face names."""
        return GGUFTensors(self._file, self.hf_config)

    @cached_property
    def keeper(self) -> Keeper:
        """What makes leaves of blocks as they are stored."""
        return Keeper(self.tensors, self.tensors)

    @property
    def _has_tokenizer(self) -> bool:
        return "tokenizer.ggml.tokens" in self.metadata

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.metadata, source=str(self.path))

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def copy_tokenizer(self, folder: Path) -> None:
        if self._has_tokenizer:
            self.tokenizer().save(folder)
