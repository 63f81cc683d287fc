"""Builders of compile jobs: those that go wrong, and a step in one program."""

import os
import time
from typing import NoReturn

import jax.numpy as jnp

from distaff.backends.aot import Case
from distaff.backends.tpu.backend import TpuBackend
from distaff.sharding.presets import preset
from distaff.sharding.step import ShardedModel
from distaff.sharding.step_case import step_case
from distaff.sharding.sweep.models import model_config


def crash(**_: object) -> NoReturn:
    """As a compiler that fails one of its own checks."""
    os.abort()


def hang(**_: object) -> None:
    """As a compiler that never ends."""
    time.sleep(600)


def refuse(**_: object) -> NoReturn:
    """As tracing that fails."""
    raise ValueError("no such thing")


def in_one_program(*, rows: int, context: int) -> Case:
    """The step of Llama-3.1-8B on 16 v5e, whose rows draw as they like."""
    config, backend = model_config("llama-3.1-8b", offline=True), TpuBackend(generation="v5e")
    model = ShardedModel(config, preset("tensor", {"tensor": 16}), backend, jnp.dtype(jnp.bfloat16))
    return step_case(model, rows=rows, queries=1, context=context, page=backend.page_size)
