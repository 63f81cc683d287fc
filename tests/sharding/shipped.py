"""Configurations of published models."""

import json

from distaff.models.checkpoints import shipped_configs
from distaff.models.config import ModelConfig
from distaff.models.families import config_from_hf


def shipped(name: str) -> ModelConfig:
    return config_from_hf(json.loads(shipped_configs()[name].read_text()))
