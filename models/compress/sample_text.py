"""Text to calibrate with and, different text, to measure with; all of it was written for Distaff."""

from pathlib import Path
from typing import Literal


def sample_text(which: Literal["calibration", "held_out"]) -> str:
    """English: to calibrate prose of the documentation, some 24,000 characters; held out half as much of a story, an
    explanation, an interview, a letter, code, news, instructions and a memory. Nothing is ever fitted to that."""
    return Path(__file__).with_name(f"{which}_sample.md").read_text(encoding="utf-8")
