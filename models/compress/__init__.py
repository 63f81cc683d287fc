"""Smaller models: weights of fewer bits."""

from .held import HeldWeights, held_weights, rounded_as
from .quantize import Quantizer, check_unrounded, quantizer
from .scheme import SCHEMES, Scheme, parse_scheme

__all__ = [
    "SCHEMES",
    "HeldWeights",
    "Quantizer",
    "Scheme",
    "check_unrounded",
    "held_weights",
    "parse_scheme",
    "quantizer",
    "rounded_as",
]
