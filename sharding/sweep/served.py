"""What users see of steps that take so long: of many candidates at once, or of one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .request import Phase, Workload
from .roofline import Floats


@dataclass(frozen=True)
class Served:
    """Seconds until the first token and between tokens; tokens each second of the whole slice: generated ones, or those
    of prompts where prefill alone is asked."""

    ttft: Floats
    tpot: Floats
    throughput: Floats


def prompt_steps(isl: float, chunk: ArrayLike) -> tuple[Floats, Floats]:
    """Steps that a prompt takes, and prompts that a step takes; one of them is 1."""
    chunk = np.asarray(chunk, float)
    return np.asarray(np.maximum(1, np.ceil(isl / chunk))), np.asarray(np.maximum(1, np.floor(chunk / isl)))


def served(
    phase: Phase,
    workload: Workload,
    decode: ArrayLike,
    prefill: ArrayLike,
    *,
    rows: ArrayLike,
    chunk: ArrayLike,
    replicas: ArrayLike,
) -> Served:
    """Of requests that follow each other.

    Args:
        decode, prefill: seconds of a step.
        rows: that a replica decodes at once. chunk: tokens of a prefill step.
    """
    rows, replicas = np.asarray(rows, float), np.asarray(replicas, float)
    steps, prompts = prompt_steps(workload.isl, chunk)
    first, token = np.asarray(prefill) * steps, np.asarray(decode)
    each = first / prompts  # of a prompt, where several are computed at once
    if phase == "both":
        # While one prompt is computed the rows of its replica wait: each of their tokens, on the average, this much.
        token = token + rows * each / workload.osl
    tokens = replicas * workload.isl / each if phase == "prefill" else replicas * rows / token
    return Served(*map(np.asarray, (first, token, tokens)))
