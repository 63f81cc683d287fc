"""Text to calibrate with and, different text, to measure with: prose of Distaff's own documentation."""

from pathlib import Path
from typing import Literal


def sample_text(which: Literal["calibration", "held_out"]) -> str:
    """About 24,000 characters of English, 5,500 tokens or so."""
    return Path(__file__).with_name(f"{which}_sample.md").read_text(encoding="utf-8")
