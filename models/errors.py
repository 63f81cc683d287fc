"""Errors of configurations, checkpoints, tokenizers and the model hub."""

from ..backends.errors import DistaffError, UsageError


class ConfigError(DistaffError):
    """A model configuration lacks a field, or a field holds a value that cannot be."""


class UnknownArchitectureError(ConfigError):
    """No family claims this architecture."""


class CheckpointError(DistaffError):
    """A checkpoint is damaged or does not fit its configuration."""


class CorruptCheckpointError(CheckpointError):
    """Bytes of a checkpoint file do not mean what they must: truncated, overlapping or garbled."""


class MissingTensorError(CheckpointError):
    """The configuration needs tensors that the checkpoint lacks."""


class ExtraTensorError(CheckpointError):
    """The checkpoint holds tensors that the configuration has no place for."""


class ShapeMismatchError(CheckpointError):
    """A tensor has another shape than the configuration says."""


class UnsupportedQuantizationError(CheckpointError):
    """A tensor is stored in a type that cannot be read."""


class TokenizerError(DistaffError):
    """A tokenizer is missing, damaged or of an unknown kind."""


class ChatTemplateError(DistaffError):
    """A chat template is missing, does not compile, or raised."""


class HubError(DistaffError):
    """A model could not be fetched."""


class ModelNotFoundError(UsageError):
    """`--model` names nothing that is known, cached or on disk."""
