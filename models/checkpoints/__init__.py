"""Checkpoints, in and out: Hugging Face folders, GGUF, Orbax, random weights; and where to get them."""

from .base import Checkpoint, Made, NamedTensors, OnBytes, Place, Placed, TensorInfo
from .byte_files import Location, ReadCount
from .convert import ConvertReport, Split, convert
from .fingerprint import fingerprint
from .hub import is_offline, resolve_model
from .opening import open_checkpoint
from .random_weights import shipped_configs
from .registry import CachedModel, KnownModel, cache_dir, cached_models, clear_cache, known_models
from .saving import save
from .stored import Stored, stored_numbers

__all__ = [
    "CachedModel",
    "Checkpoint",
    "ConvertReport",
    "KnownModel",
    "Location",
    "Made",
    "NamedTensors",
    "OnBytes",
    "Place",
    "Placed",
    "ReadCount",
    "Split",
    "Stored",
    "TensorInfo",
    "cache_dir",
    "cached_models",
    "clear_cache",
    "convert",
    "fingerprint",
    "is_offline",
    "known_models",
    "open_checkpoint",
    "resolve_model",
    "save",
    "shipped_configs",
    "stored_numbers",
]
