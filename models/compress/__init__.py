"""Smaller models: weights of fewer bits."""

from .quantize import Quantizer, check_unrounded, quantizer
from .scheme import SCHEMES, Scheme, parse_scheme

__all__ = ["SCHEMES", "Quantizer", "Scheme", "check_unrounded", "parse_scheme", "quantizer"]
