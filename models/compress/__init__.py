"""Smaller models: weights of fewer bits."""

from .quantize import Quantizer, quantizer
from .scheme import SCHEMES, Scheme, parse_scheme

__all__ = ["SCHEMES", "Quantizer", "Scheme", "parse_scheme", "quantizer"]
