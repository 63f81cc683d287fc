"""What `--quantize` makes of a checkpoint's weights: rounded, as they are stored, or expanded."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from jax.typing import DTypeLike

from ...backends.errors import UsageError
from ...backends.quantized import Rounding
from ..checkpoints.base import Checkpoint, OnBytes, Place
from ..checkpoints.stored import stored_numbers
from ..config import ModelConfig
from ..decoder import Weights
from .quantize import Quantizer, check_unrounded, quantizer
from .scheme import EXPANDED, STORED, parse_scheme
from .turning import Back, Turning, is_turned

_SHOWN: Final = 3


@dataclass(frozen=True)
class LoadedWeights:
    """Weights as they are held.

    Args:
        hidden: what hidden states behind the last norm become where they are told; None: they stay.
    """

    weights: Weights
    hidden: Back | None = None


@dataclass(frozen=True)
class HeldWeights:
    """How weights are held.

    Args:
        stored: the model's configuration as the checkpoint has it.
        made: what rounds them; None: nothing does.
        roundings: of the weights that come as Quantized, by their paths: rounded, or as they are stored.
        expanded: why others that are stored as small numbers are expanded though they were to stay, by their paths.
        turned: whether the stream is turned before.
    """

    stored: ModelConfig
    made: Quantizer | None = None
    roundings: Mapping[str, Rounding] = field(default_factory=dict)
    expanded: Mapping[str, str] = field(default_factory=dict)
    turned: bool = False

    @property
    def config(self) -> ModelConfig:
        """Of the model as it is held: of one whose stream is turned, another table scores the vocabulary."""
        return replace(self.stored, tied=False) if self.turned else self.stored

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        progress: OnBytes | None = None,
    ) -> "LoadedWeights":
        """Reads them, each leaf where `place` says, which knows those of `config`.

        Raises:
            As Checkpoint.load_weights.
        """
        turning = Turning(self.made, self.stored) if self.turned and self.made is not None else None
        weights = checkpoint.load_weights(
            self.stored, dtype=dtype, place=place, made=turning or self.made, keep=self.keep, progress=progress
        )
        return LoadedWeights(weights) if turning is None else LoadedWeights(turning.whole(weights), turning.back())

    @property
    def keep(self) -> Collection[str]:
        """Paths of what stays as it is stored."""
        return () if self.made is not None else self.roundings.keys()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is expanded, for people: one for each reason."""
        paths: dict[str, list[str]] = {}
        for path, why in self.expanded.items():
            paths.setdefault(why, []).append(path)
        return tuple(
            f"expanded, since {why}: {', '.join(found[:_SHOWN])}"
            + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
            for why, found in paths.items()
        )

    def under(self, roundings: Mapping[str, Rounding]) -> "HeldWeights":
        """The same where a layout leaves these as they are stored."""
        split = dict.fromkeys(self.roundings.keys() - roundings.keys(), "its groups would lie on several devices")
        return replace(self, roundings=roundings, expanded={**self.expanded, **split})


def held_weights(quantize: str | None, checkpoint: Checkpoint, config: ModelConfig) -> HeldWeights:
    """By a name of SCHEMES, STORED or EXPANDED; None is what the checkpoint's format is meant for. Reads no weights.

    Raises:
        InvalidParameterError: it is no such name, or groups do not divide a weight.
        UsageError: the checkpoint is quantised and would be rounded again, or nothing in it can stay.
    """
    if quantize == EXPANDED:
        return HeldWeights(config)
    if quantize is not None and quantize != STORED:
        held = rounded_as(quantize, config)
        check_unrounded(checkpoint)
        return held
    stored = stored_numbers(checkpoint, config)
    if quantize is None and not stored.by_default:
        return HeldWeights(config)
    held = HeldWeights(config, None, stored.roundings, stored.expanded)
    if quantize == STORED and not stored.roundings:
        why = "; ".join(held.remarks) or "its weights are floats"
        raise UsageError(
            f"quantize {STORED!r}: {checkpoint.path} holds nothing that is multiplied as it is stored ({why}); "
            "leave the option out, or name a scheme such as int8"
        )
    return held


def rounded_as(quantize: str | None, config: ModelConfig) -> HeldWeights:
    """Weights that are rounded as they are loaded, by a name of SCHEMES; None: they are not.

    Raises:
        InvalidParameterError: it is no such name, or groups do not divide a weight.
    """
    if quantize is None:
        return HeldWeights(config)
    made = quantizer(parse_scheme(quantize), config)
    held = HeldWeights(config, made, turned=is_turned(made.scheme, config))
    return replace(held, roundings=made.roundings(held.config))
